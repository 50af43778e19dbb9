"""Checks a repository's `open_clip_config.json`: sizes within limits, and no names of files, other models or code."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from embedding.models.files.failure import unloadable
from embedding.models.files.json_file import JsonMap, words_of
from embedding.shown import shown

_NAME = "open_clip_config.json"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_TIMM_NAME = re.compile(r"[\w.-]+", re.ASCII)

_MODEL_KEYS = words_of(
    """
    custom_text embed_dim init_logit_bias init_logit_scale multimodal_cfg nonscalar_logit_scale quick_gelu text_cfg
    vision_cfg
    """
)
_TOWER_KEYS = words_of(
    """
    act_kwargs attentional_pool attn_pooler_heads attn_pooler_queries block_type clean context_length dim_head embed_cls
    eos_id final_ln_after_pool head_width heads hf_model_name hf_model_pretrained hf_pooler_type hf_proj_type
    hf_tokenizer_name image_size latent_dim layers ls_init_value mlp_ratio n_queries no_causal_mask no_ln_pre
    norm_kwargs output_tokens pad_id patch_dropout patch_size pool_type pos_embed_type proj_bias proj_type qk_norm
    scale_attn scale_attn_inner scale_fc scale_heads scaled_cosine_attn timm_drop timm_drop_path timm_model_name
    timm_model_pretrained timm_pool timm_proj timm_proj_bias tokenizer_kwargs tokenizer_mode vocab_size width
    """
)
_KWARGS = frozenset({"approximate", "eps", "elementwise_affine", "bias"})
_MAXIMA = {
    "attn_pooler_heads": 1024,
    "attn_pooler_queries": 4096,
    "context_length": 4096,
    "dim_head": 4096,
    "head_width": 4096,
    "heads": 1024,
    "image_size": 2048,
    "latent_dim": 65_536,
    "layers": 256,
    "mlp_ratio": 64,
    "n_queries": 4096,
    "patch_size": 1024,
    "vocab_size": 4_000_000,
    "width": 65_536,
    "embed_dim": 65_536,
}
_MAX_PATCHES = 4096
"""Of a picture: the memory of attention grows with their square."""
_POSITIVE = frozenset({"head_width", "heads", "image_size", "patch_size", "width", "embed_dim", "context_length"})


def checked_openclip(given: JsonMap, name: str = _NAME) -> JsonMap:
    """An open_clip config that may be given to open_clip: {"model_cfg", "preprocess_cfg"}.

    Raises:
        RequestError: REFUSED: a key or a value that is not served, or a size that no model has.
    """
    try:
        return _checked(given)
    except _Unfit as error:
        raise unloadable(f"the {name} cannot be used: {error}") from None


class _Unfit(Exception):
    pass


def _checked(given: JsonMap) -> JsonMap:
    model = given.get("model_cfg")
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
        raise _Unfit("model_cfg lacks embed_dim, vision_cfg or text_cfg")
    _check_keys(model, _MODEL_KEYS, "model_cfg")
    _check_sizes({"embed_dim": model["embed_dim"]})
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        if part in model:
            _check_tower(model[part], part)
    for key in ("custom_text", "quick_gelu", "nonscalar_logit_scale", "init_logit_bias", "init_logit_scale"):
        _check_scalar(model.get(key), key)
    _check_picture(model["vision_cfg"])
    _forbid_downloads(model)
    preprocessing = given.get("preprocess_cfg")
    if preprocessing is not None and not isinstance(preprocessing, dict):
        raise _Unfit("preprocess_cfg is no map")
    return {"model_cfg": model, "preprocess_cfg": preprocessing or {}}


def check_openclip_sizes(model: JsonMap, nbytes: int) -> None:
    """Compares a config with the checkpoint's size, before a model is built: a weight takes at least one byte.

    Raises:
        RequestError: REFUSED: the checkpoint cannot hold that many weights.
    """
    least = 0
    for part in ("vision_cfg", "text_cfg"):
        tower = model[part]
        width, layers = tower.get("width"), tower.get("layers", 12)
        own = not (tower.get("timm_model_name") or tower.get("hf_model_name"))
        if own and isinstance(width, int) and isinstance(layers, int):
            least += int((4 + 2 * tower.get("mlp_ratio", 4)) * width * width) * layers
        if own and isinstance(width, int) and isinstance(tower.get("vocab_size"), int):
            least += width * tower["vocab_size"]
    if least > nbytes:
        raise unloadable(f"the config describes at least {least} weights, but the checkpoint has only {nbytes} bytes")


@cache
def _timm_names() -> frozenset[str]:
    import timm  # imported late: slow, and needed by few models

    return frozenset(timm.list_models())


def _check_tower(tower: Any, part: str) -> None:
    if not isinstance(tower, dict):
        raise _Unfit(f"{part} is no map")
    _check_keys(tower, _TOWER_KEYS, part)
    _check_sizes(tower)
    for key, value in tower.items():
        if key in ("act_kwargs", "norm_kwargs"):
            _check_kwargs(value, key)
        elif key != "tokenizer_kwargs" and not (key in ("layers", "image_size") and isinstance(value, list)):
            _check_scalar(value, key)


def _check_sizes(tower: JsonMap) -> None:
    for key, maximum in _MAXIMA.items():
        if key not in tower or (key == "patch_size" and tower[key] is None and isinstance(tower.get("layers"), list)):
            continue  # a ResNet has no patches
        values = tower[key] if isinstance(tower[key], list) and key in ("layers", "image_size") else [tower[key]]
        least = 1 if key in _POSITIVE else 0
        kinds = (int, float) if key == "mlp_ratio" else (int,)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= maximum:
                raise _Unfit(f"{key} is {shown(str(value))}, and must be a number from {least} to {maximum}")
        if len(values) > 4 or not values:
            raise _Unfit(f"{key} has {len(values)} numbers")


def _check_picture(vision: JsonMap) -> None:
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    plain = not vision.get("timm_model_name") and not isinstance(vision.get("layers"), list)
    if plain and (height // patch) * (width // patch) > _MAX_PATCHES:
        raise _Unfit(f"a picture of {height} x {width} in patches of {patch} has more than {_MAX_PATCHES} of them")


def _forbid_downloads(model: JsonMap) -> None:
    """Keeps timm and transformers from reading other sources: timm would resolve `hf-hub:` and `local-dir:`, and both
    would download pretrained weights, which the checkpoint's weights replace anyway."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    name = vision.get("timm_model_name")
    if name is not None:
        if not isinstance(name, str) or not _TIMM_NAME.fullmatch(name) or not _is_timm(name):
            raise _Unfit(f"timm_model_name '{shown(str(name))}' is not a name of timm's own")
        vision["timm_model_pretrained"] = False
    for key in ("hf_model_name", "hf_tokenizer_name"):
        name = text.get(key)
        if name is not None and not (isinstance(name, str) and _REPOSITORY.fullmatch(name) and ".." not in name):
            raise _Unfit(f"{key} '{shown(str(name))}' is not the name of a hub repository")
    if text.get("hf_model_name") is not None:
        text["hf_model_pretrained"] = False


def _is_timm(name: str) -> bool:
    return name in _timm_names() or name.rpartition(".")[0] in _timm_names()


def _check_keys(given: JsonMap, known: frozenset[str], part: str) -> None:
    if unknown := sorted(given.keys() - known):
        raise _Unfit(f"{part} has a key '{shown(unknown[0])}' that is not served")


def _check_kwargs(value: Any, key: str) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or not value.keys() <= _KWARGS:
        raise _Unfit(f"{key} holds more than {', '.join(sorted(_KWARGS))}")
    for inner in value.values():
        _check_scalar(inner, key)


def _check_scalar(value: object, key: str) -> None:
    if not (value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 200)):
        raise _Unfit(f"{key} is neither a number nor a short text")
    if isinstance(value, int | float) and not abs(value) <= 2**31:
        raise _Unfit(f"{key} is out of range")
