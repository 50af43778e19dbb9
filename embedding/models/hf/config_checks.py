"""Checks the config files of an untrusted transformers repository against allowlists and size limits.

The checks only read the files: no model and no tokenizer is built, and transformers is not imported. Keys that are not
in a list are dropped if no vector depends on them; values that are not served are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from embedding.models.files.failure import unloadable
from embedding.models.files.json_file import JsonMap, parse_map, words_of
from embedding.models.hf.pooling import pooling_mode
from embedding.models.openclip.config_checks import checked_openclip
from embedding.shown import shown

MODEL_TYPES = words_of(
    """
    albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie eurobert fnet gte
    jina_embeddings_v3 longformer megatron-bert mobilebert modernbert mpnet nomic_bert nystromformer rembert roberta
    roberta-prelayernorm roformer squeezebert xlm xlm-roberta xlm-roberta-xl
    gemma gemma2 gemma3_text gpt2 gpt_neo gpt_neox llama mistral opt phi3 qwen2 qwen3
    m2m_100 mt5 t5
    """
)
"""`model_type`s of transformers that take only texts, and refer to no other models or files."""

TOKENIZER_CLASSES = words_of(
    """
    Albert Barthez Bert BigBird Camembert CLIP Deberta DebertaV2 DistilBert Electra FNet Funnel Gemma GPT2 GPTNeoX
    Herbert Llama Longformer M2M100 MBart MBart50 MobileBert MPNet MT5 Nllb OpenAIGPT Qwen2 RemBert Roberta
    RoFormer Siglip SqueezeBert T5 XGLM XLM XLMRoberta XLNet
    """
)
"""Names of tokenizer classes without the words Tokenizer and Fast."""
_GENERIC_CLASSES = frozenset({"PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"})

_CONFIG_KEYS = words_of(
    """
    _remove_final_layer_norm activation activation_dropout activation_function add_cross_attention architectures asm
    attention_bias attention_dropout attention_probs_dropout_prob attention_type attention_types attention_window
    attn_logit_softcapping attn_pdrop block_size bos_token_id causal chunk_size_feed_forward classifier_activation
    classifier_bias classifier_dropout classifier_dropout_prob classifier_pooling cls_token_id conv_kernel_size d_ff
    d_kv d_model decoder_attention_heads decoder_bias decoder_ffn_dim decoder_layerdrop decoder_layers
    decoder_start_token_id deterministic_flash_attn dim do_layer_norm_before dropout dropout_rate emb_dim embd_pdrop
    embed_dropout embed_init_std embedding_dropout embedding_size enable_bias encoder_attention_heads encoder_ffn_dim
    encoder_layerdrop encoder_layers end_n_top eos_token_id feed_forward_proj ffn_dim final_logit_softcapping
    gelu_activation global_attn_every_n_layers global_rope_theta head_dim head_ratio hidden_act hidden_activation
    hidden_dim hidden_dropout hidden_dropout_prob hidden_size init_std initializer_cutoff_factor initializer_factor
    initializer_range inner_group_num input_embedding_size intermediate_groups intermediate_size intra_bottleneck_size
    inv_coeff_init_option is_decoder is_encoder is_encoder_decoder is_gated_act k_groups key_query_shared_bottleneck
    lang_id layer_norm_elementwise_affine layer_norm_eps layer_norm_epsilon layer_types layerdrop legacy local_attention
    local_rope_theta mask_index mask_token_id max_position_embeddings max_relative_positions max_window_layers mlp_bias
    mlp_dropout model_type n_embd n_head n_heads n_inner n_langs n_layer n_layers n_positions norm_bias norm_eps
    norm_rel_ebd normalization_type num_attention_heads num_decoder_layers num_feedforward_networks num_groups num_heads
    num_hidden_groups num_hidden_layers num_key_value_heads num_landmarks num_layers num_random_blocks onnx_export
    original_max_position_embeddings output_embedding_size output_groups output_past pad_token_id pooler_dropout
    pooler_hidden_act pooler_hidden_size pos_att_type position_biased_input position_buckets position_embedding_type
    post_attention_groups pretraining_tp problem_type q_groups qa_dropout query_pre_attn_scalar relative_attention
    relative_attention_max_distance relative_attention_num_buckets reorder_and_upcast_attn rescale_embeddings
    resid_dropout resid_pdrop rms_norm_eps rope_local_base_freq rope_parameters rope_scaling rope_theta rotary_emb_base
    rotary_pct rotary_value scale_attn_by_inverse_layer_idx scale_attn_weights scale_embedding segment_means_seq_len
    sep_token_id seq_classif_dropout share_att_key sinusoidal_embeddings sinusoidal_pos_embds sliding_window
    sparse_pred_ignore_index sparse_prediction start_n_top static_position_embeddings summary_activation
    summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type summary_use_proj task_type_vocab_size
    tie_word_embeddings tokenizer_class tpu_short_seq_length transformers_version trigram_input type_vocab_size
    unk_index use_bias use_bidirectional_attention use_bottleneck use_bottleneck_attention use_cache use_lang_emb
    use_parallel_residual use_sliding_window use_task_id use_tpu_fourier_optimizations v_groups vocab_size
    window_size word_embed_proj_dim
    """
)

_TOKENIZER_KEYS = words_of(
    """
    add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens bos_token
    clean_up_tokenization_spaces cls_token do_basic_tokenize do_lower_case do_lowercase_and_remove_accent eos_token
    extra_ids extra_special_tokens id2lang keep_accents lang2id legacy legacy_behaviour mask_token model_input_names
    model_max_length never_split pad_token pad_token_type_id padding_side remove_space sep_token split_by_punct
    split_special_tokens src_lang strip_accents tgt_lang tokenize_chinese_chars tokenizer_class trim_offsets
    truncation_side unk_id unk_token
    """
)
_SPECIAL_TOKENS = frozenset(key for key in _TOKENIZER_KEYS if key.endswith("_token") and not key.startswith("add_")) | {
    "additional_special_tokens",
    "extra_special_tokens",
}

MAX_LAYERS = 256
_LAYERS = words_of("""
    encoder_layers decoder_layers n_layer n_layers num_decoder_layers num_hidden_layers num_layers num_hidden_groups
    inner_group_num num_feedforward_networks
""")  # fmt: skip
_WIDE = words_of("""
    d_kv d_model dim emb_dim embedding_size head_dim hidden_size input_embedding_size n_embd output_embedding_size
    intra_bottleneck_size pooler_hidden_size word_embed_proj_dim
""")  # fmt: skip
_WIDER = words_of("d_ff decoder_ffn_dim encoder_ffn_dim ffn_dim hidden_dim intermediate_size n_inner")
_FEW = words_of("""
    decoder_attention_heads encoder_attention_heads n_head n_heads num_attention_heads num_heads num_key_value_heads
    type_vocab_size task_type_vocab_size n_langs
""")  # fmt: skip
_POSITIONS = words_of("max_position_embeddings n_positions original_max_position_embeddings")
_MAXIMA: dict[str, int] = {
    **dict.fromkeys(_LAYERS, MAX_LAYERS),
    **dict.fromkeys(_WIDE, 65_536),
    **dict.fromkeys(_WIDER, 2**19),
    **dict.fromkeys(_FEW, 1024),
    **dict.fromkeys(_POSITIONS, 2**24),
    "vocab_size": 4_000_000,
}
"""Upper limits of sizes; those of the largest known models are several times smaller."""
_MAX_NUMBER = 2**40
_SINUSOIDAL = frozenset({"distilbert", "roformer", "xlm"})
_MAX_SINUSOIDS = 2**21
"""Positions times width, where transformers computes the table in Python: this many take a second."""
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers")
_WIDTHS = ("embedding_size", "input_embedding_size", "hidden_size", "d_model", "dim", "emb_dim", "n_embd")
_MAX_TEXT = 1000
_PATH = re.compile(r"[/:\\]")
_MAX_LIST = 4096


def checked_config(given: JsonMap, name: str = "config.json") -> JsonMap:
    """A transformers config, reduced to the keys that are allowed for a text model.

    Raises:
        RequestError: REFUSED: a model of another kind, or a size that no model has.
    """
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise unloadable(f"{name} has model_type '{shown(str(kind))}', which is not served as a text model")
    if given.get("quantization_config") is not None:
        raise unloadable(f"{name} has a quantization_config: quantised weights are not served")
    config = {key: value for key, value in given.items() if key in _CONFIG_KEYS}
    for key, value in config.items():
        _check_value(key, value, name)
    _check_repeats(config.get("attention_types"), name)
    for key in ("architectures", "transformers_version"):
        config.pop(key, None)
    _check_tables(config, name)
    if (own := config.get("tokenizer_class")) is not None:
        config["tokenizer_class"] = _tokenizer_class(own, name)
    return config


def checked_tokenizer_config(given: JsonMap, name: str = "tokenizer_config.json") -> JsonMap:
    """The settings of a tokenizer, reduced to those that name no file and no code.

    Raises:
        RequestError: REFUSED: a class that is not served, or a value that no tokenizer has.
    """
    config = {key: value for key, value in given.items() if key in _TOKENIZER_KEYS and value is not None}
    if "tokenizer_class" in config:
        config["tokenizer_class"] = _tokenizer_class(config["tokenizer_class"], name)
    for key in ("padding_side", "truncation_side"):
        if config.get(key, "right") not in ("left", "right"):
            raise unloadable(f"{name}: {key} is neither left nor right")
    for key in _SPECIAL_TOKENS & config.keys():
        _check_tokens(config[key], f"{name}: {key}")
    _check_added(config.get("added_tokens_decoder", {}), name)
    for key in config.keys() - _SPECIAL_TOKENS - {"added_tokens_decoder", "never_split"}:
        if isinstance(config[key], str | list | dict):
            _check_plain(config[key], f"{name}: {key}")
    return config


def checked_special_tokens(given: JsonMap, name: str = "special_tokens_map.json") -> JsonMap:
    """Only the special tokens: transformers would use other keys as settings of the tokenizer."""
    tokens = {key: value for key, value in given.items() if key in _SPECIAL_TOKENS and value is not None}
    for key, value in tokens.items():
        _check_tokens(value, f"{name}: {key}")
    return tokens


def checked_added_tokens(given: JsonMap, name: str = "added_tokens.json") -> JsonMap:
    """A map from tokens to their ids."""
    if not all(isinstance(number, int) and 0 <= number < _MAXIMA["vocab_size"] for number in given.values()):
        raise unloadable(f"{name} gives a token another value than its number")
    return given


def checked_index(given: JsonMap, present: frozenset[str], name: str) -> JsonMap:
    """The index of weights in several files: which file of the repository has which tensor.

    Args:
        given: as it was read.
        present: names of the files of weights in the repository.
        name: of the index, for messages.
    """
    locations = given.get("weight_map")
    if not isinstance(locations, dict):
        raise unloadable(f"{name} has no weight_map")
    for location in locations.values():
        if not isinstance(location, str) or location not in present:
            raise unloadable(
                f"{name} names a file '{shown(str(location))}', which is not one of the repository's weights"
            )
    total = (given.get("metadata") or {}).get("total_size") if isinstance(given.get("metadata"), dict) else None
    return {"metadata": {"total_size": total} if isinstance(total, int | float) else {}, "weight_map": locations}


def check_sizes(config: Mapping[str, Any], nbytes: int, tensors: int | None) -> None:
    """Compares a checked config with the sizes of the files of weights, before a model is built.

    Args:
        config: from `checked_config`.
        nbytes: of all files of weights.
        tensors: how many these hold; None if unknown.

    Raises:
        RequestError: REFUSED: it describes a model that has more weights.
    """
    layers = max((config[key] for key in _DEPTHS if isinstance(config.get(key), int)), default=0)
    # All layers of Albert share their weights. Sizes that the config leaves to defaults are not checked here.
    if tensors is not None and config["model_type"] != "albert" and layers > tensors:
        raise unloadable(f"config.json says {layers} layers, but the weights are {tensors} tensors")
    width = _width(config)
    table = width * config["vocab_size"] if isinstance(config.get("vocab_size"), int) else 0
    # The smallest data type takes a byte per weight.
    if table > nbytes:
        raise unloadable(
            f"config.json says {config['vocab_size']} tokens of width {width}, but the weights have only {nbytes} bytes"
        )


def check_config_files(files: Mapping[str, bytes]) -> None:
    """Checks the config files of a repository, given by their names; other files are ignored.

    Raises:
        RequestError: REFUSED, naming the file.
    """
    checks = {
        "config.json": checked_config,
        "tokenizer_config.json": checked_tokenizer_config,
        "special_tokens_map.json": checked_special_tokens,
        "added_tokens.json": checked_added_tokens,
        "1_Pooling/config.json": lambda given: {"pooling": pooling_mode(given)},
        "open_clip_config.json": checked_openclip,
    }
    weights = frozenset(name for name in files if name.endswith((".safetensors", ".bin")))
    for name, content in files.items():
        if name in checks:
            checks[name](parse_map(content, name))
        elif name.endswith(".index.json"):
            checked_index(parse_map(content, name), weights, name)


def _tokenizer_class(given: object, name: str) -> str:
    if isinstance(given, str):
        bare = given.removesuffix("Fast").removesuffix("Tokenizer")
        if given in _GENERIC_CLASSES or (bare != given and bare in TOKENIZER_CLASSES):
            return given
    raise unloadable(f"{name} has tokenizer_class '{shown(str(given))}', which is not served")


def _check_tables(config: JsonMap, name: str) -> None:
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    width = _width(config)
    if config["model_type"] in _SINUSOIDAL and (positions or 0) * width > _MAX_SINUSOIDS:
        raise unloadable(f"{name} says {positions} positions of width {width}, which is too much for its model_type")


def _check_repeats(kinds: object, name: str) -> None:
    """Checks gpt_neo's list of attention kinds, each with its number of repetitions."""
    for kind in kinds if isinstance(kinds, list) else []:
        if isinstance(kind, list) and any(isinstance(count, int) and not 0 <= count <= MAX_LAYERS for count in kind):
            raise unloadable(f"{name}: attention_types is repeated more than {MAX_LAYERS} times")


def _width(config: Mapping[str, Any]) -> int:
    return next((config[key] for key in _WIDTHS if isinstance(config.get(key), int)), 1)


def _check_value(key: str, value: object, name: str) -> None:
    maximum = _MAXIMA.get(key)
    if maximum is not None and value is not None and not (_is_whole(value) and 0 <= value <= maximum):  # type: ignore[operator]
        raise unloadable(f"{name}: {key} is {shown(str(value))}, and must be a whole number of at most {maximum}")
    _check_plain(value, f"{name}: {key}")


def _check_plain(value: object, location: str) -> None:
    """Allows numbers within limits, short texts, and lists and maps of these."""
    if isinstance(value, str) and (len(value) > _MAX_TEXT or _PATH.search(value)):
        raise unloadable(f"{location} is '{shown(value)}', which is neither a name nor a number")
    if isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER:
        raise unloadable(f"{location} is out of range")
    if isinstance(value, list | dict):
        if len(value) > _MAX_LIST:
            raise unloadable(f"{location} has {len(value)} members")
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, location)


def _check_tokens(value: object, location: str) -> None:
    """Checks one or several special tokens, each a text or a map with its settings."""
    for token in value.values() if isinstance(value, dict) and "content" not in value else _listed(value):
        _check_token(token, location)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _check_token(token: object, location: str) -> None:
    content = token.get("content") if isinstance(token, dict) else token
    if isinstance(content, bool) or not isinstance(content, str):
        raise unloadable(f"{location} is no token")
    if len(content) > _MAX_TEXT:
        raise unloadable(f"{location} is a token of {len(content)} characters")
    known = {"content", "lstrip", "rstrip", "normalized", "single_word", "special", "id", "__type"}
    if isinstance(token, dict) and not token.keys() <= known:
        raise unloadable(f"{location} is a token with unknown settings")


def _check_added(tokens: object, name: str) -> None:
    if not isinstance(tokens, dict):
        raise unloadable(f"{name}: added_tokens_decoder is no map")
    for number, token in tokens.items():
        if not (number.isascii() and number.isdigit() and len(number) < 8):
            raise unloadable(f"{name}: added_tokens_decoder has a key '{shown(number)}', which is no token's number")
        _check_token(token, f"{name}: added_tokens_decoder")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
