"""Repositories of transformers and open_clip models that want to read, run or take what is not theirs.

Each function takes the files of a good repository, as name to content, and gives those of a hostile one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Files = dict[str, bytes]


def write(files: Files, folder: Path) -> Path:
    """The files in a new folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def changed(files: Files, name: str, **members: Any) -> Files:
    """With other members in one JSON file."""
    content = json.loads(files[name]) if name in files else {}
    return files | {name: json.dumps(content | members).encode()}


def without(files: Files, *names: str) -> Files:
    return {name: content for name, content in files.items() if name not in names}


# --- Tokenizers that read files of the machine ---

FILE_KEYS = (
    "vocab", "vocab_file", "merges", "merges_file", "tokenizer_file", "sp_model", "spm_file", "source_spm",
    "target_spm", "normalizer_file", "name_or_path", "special_tokens_map_file", "init_inputs", "gguf_file",
)  # fmt: skip


def reads_a_file(files: Files, path: Path, key: str = "vocab", place: str = "tokenizer_config.json") -> Files:
    """Without vocabulary of its own: whatever is at the path is to become one."""
    value: Any = [str(path)] if key == "init_inputs" else str(path)
    return changed(without(files, "tokenizer.json", "vocab.txt"), place, **{key: value})


# --- Tokenizers that panic, hang or grow ---


def tokenizer_with(files: Files, **members: Any) -> Files:
    """With other members in tokenizer.json, and of the class that takes all of it."""
    general = changed(files, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]")
    return changed(general, "tokenizer.json", **members)


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def panics(files: Files) -> Files:
    """Oniguruma gives up after ten million steps, and the library around it panics."""
    return tokenizer_with(files, pre_tokenizer=split_by("(a+)+[xy]"))


def panics_at(files: Files, character: str) -> Files:
    """The same, but for texts with a long run of one character only: no trial finds it."""
    c = character
    return tokenizer_with(files, pre_tokenizer=split_by(f"({c}+)+[xy]"))


def hangs_at(files: Files, character: str) -> Files:
    """Steps with the fourth power of the length, none of them too many for Oniguruma at a time."""
    c = character
    return tokenizer_with(files, pre_tokenizer=split_by(f"({c}+)({c}+)({c}+)({c}+)[xy]"))


def expands(files: Files, character: str = " ", factor: int = 10_000_000) -> Files:
    """One character becomes megabytes."""
    replace = {"type": "Replace", "pattern": {"String": character}, "content": "a" * factor}
    return tokenizer_with(files, normalizer=replace)


def pads(files: Files, length: int = 10**9) -> Files:
    padding = {
        "strategy": {"Fixed": length}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    return tokenizer_with(files, padding=padding)


def adds_special_tokens(files: Files, count: int = 5000) -> Files:
    """Around each text thousands of special tokens, whatever the truncation."""
    token = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    template = {
        "type": "TemplateProcessing", "single": [token] * count + [text], "pair": [text],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
    }  # fmt: skip
    return tokenizer_with(files, post_processor=template)


def charsmap_of_garbage(files: Files) -> Files:
    garbage = base64.b64encode(b"\xff" * 4096).decode()
    return tokenizer_with(files, normalizer={"type": "Precompiled", "precompiled_charsmap": garbage})


TOKENIZERS: dict[str, Callable[[Files], Files]] = {
    "panics": panics,
    "expands": expands,
    "adds special tokens": adds_special_tokens,
    "charsmap": charsmap_of_garbage,
}
"""Those that a trial finds."""


# --- Configs ---

CONFIGS: dict[str, dict[str, Any]] = {
    "layers": {"num_hidden_layers": 3000},
    "many layers": {"num_hidden_layers": 200},
    "vocabulary": {"vocab_size": 3_000_000},
    "width": {"hidden_size": 65_536, "num_attention_heads": 16},
    "wide layers": {"intermediate_size": 2**19},
    "positions": {"max_position_embeddings": 2**24},
    "no number": {"num_hidden_layers": "3000"},
    "negative": {"hidden_size": -1},
    "fraction": {"hidden_size": 1e300},
    "kind": {"model_type": "timm_backbone", "backbone": "hf-hub:a/b"},
    "kind of two": {"model_type": "encoder-decoder", "encoder": {"model_type": "bert"}},
    "unknown kind": {"model_type": "nothing"},
    "no kind": {"model_type": None},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "tokenizer class": {"tokenizer_class": "MarianTokenizer"},
    "sinusoids": {"model_type": "distilbert", "sinusoidal_pos_embds": True, "max_position_embeddings": 2**24},
    "repeats": {"model_type": "gpt_neo", "attention_types": [[["global"], 10**9]]},
}
"""Members of config.json that must be refused."""

DROPPED: dict[str, Any] = {
    "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
    "attn_implementation": "stranger/kernel",
    "_attn_implementation": "stranger/kernel",
    "_attn_implementation_internal": "stranger/kernel",
    "experts_implementation": "stranger/kernel",
    "use_kernels": True,
    "torch_dtype": "nn",
    "dtype": "nn",
    "num_labels": 10**9,
    "_name_or_path": "/etc/passwd",
    "name_or_path": "/etc/passwd",
    "_commit_hash": "../../x",
    "pruned_heads": {"0": [0]},
    "backbone_config": {"model_type": "timm_backbone"},
    "base_model_tp_plan": {"*": "x"},
    "gguf_file": "/etc/passwd",
}
"""Members of config.json that must change nothing."""

OPENCLIP: dict[str, dict[str, dict[str, Any]]] = {
    "timm from the hub": {"vision_cfg": {"timm_model_name": "hf-hub:a/b"}},
    "timm from a folder": {"vision_cfg": {"timm_model_name": "local-dir:/etc"}},
    "no timm": {"vision_cfg": {"timm_model_name": "nothing_of_timms"}},
    "tower elsewhere": {"text_cfg": {"hf_model_name": "/etc"}},
    "tower above": {"text_cfg": {"hf_model_name": "../x"}},
    "tokenizer elsewhere": {"text_cfg": {"hf_tokenizer_name": "/etc/passwd"}},
    "layers": {"vision_cfg": {"layers": 3000}},
    "width": {"vision_cfg": {"width": 10**6}},
    "size": {"vision_cfg": {"image_size": 10**6}},
    "patches": {"vision_cfg": {"image_size": 2048, "patch_size": 1}},
    "no patch": {"vision_cfg": {"patch_size": 0}},
    "context": {"text_cfg": {"context_length": 10**6}},
    "vocabulary": {"text_cfg": {"vocab_size": 10**9}},
    "unknown": {"vision_cfg": {"pretrained_image": "/etc"}},
    "activation": {"text_cfg": {"act_kwargs": {"inplace": "/etc"}}},
    "text": {"text_cfg": {"pool_type": "x" * 10_000}},
}
"""Members of the towers in open_clip_config.json that must be refused."""

JSON: dict[str, bytes] = {
    "deep": b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "deeper than Python": b"[" * 1_000_000,
    "large": b'{"a": "' + b"x" * 5_000_000 + b'"}',
    "many": b'{"a": [' + b"[]," * 1_000_000 + b"0]}",
    "digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "no object": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
    "empty": b"",
}
"""What must be refused as any JSON file."""
