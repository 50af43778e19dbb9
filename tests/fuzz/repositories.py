"""Files that describe a model, changed in structure and in bytes, through what judges them before a library does."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import msgpack

from embedding.errors import Fault, RequestError
from embedding.models.files.json_file import parse_map
from embedding.models.hf.config_checks import (
    check_config_files,
    checked_config,
    checked_index,
    checked_special_tokens,
    checked_tokenizer_config,
)
from embedding.models.openclip.config_checks import checked_openclip
from tests.fuzz import bytewise
from tests.fuzz.target import Finding

Files = dict[str, bytes]
CONFIG = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "torch_dtype": "float32", "rope_scaling": {"type": "linear", "factor": 2.0},
}  # fmt: skip
TOKENIZER = {
    "tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "model_max_length": 10**30, "unk_token": "[UNK]",
    "pad_token": {"content": "[PAD]", "lstrip": False}, "padding_side": "right",
    "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}},
}  # fmt: skip
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 64, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
INDEX = {"metadata": {"total_size": 5}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
WEIGHTS = frozenset({"model-1.safetensors", "model-2.safetensors"})
SEEDS: dict[str, Any] = {
    "config.json": CONFIG,
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": {"cls_token": "[CLS]", "additional_special_tokens": ["<a>", {"content": "<b>"}]},
    "added_tokens.json": {"<a>": 98},
    "1_Pooling/config.json": {"pooling_mode_cls_token": True},
    "open_clip_config.json": OPEN_CLIP,
    "model.safetensors.index.json": INDEX,
}
CHECKED = {
    "config.json": checked_config,
    "tokenizer_config.json": checked_tokenizer_config,
    "special_tokens_map.json": checked_special_tokens,
    "open_clip_config.json": checked_openclip,
    "model.safetensors.index.json": lambda given: checked_index(given, WEIGHTS, "index"),
}
ELSEWHERE = "/etc/passwd"
"""A file that no description may lead to: it is put into many of them, under every key."""
KEYS = (
    "vocab", "vocab_file", "merges_file", "tokenizer_file", "spm_file", "source_spm", "auto_map", "_name_or_path",
    "name_or_path", "attn_implementation", "_attn_implementation", "quantization_config", "hf_model_name",
    "hf_tokenizer_name", "timm_model_name", "timm_model_pretrained", "pretrained_image", "backend", "text_config",
    "chat_template", "processor_class", "use_kernels", "weight_map", "__class__", "self",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    ELSEWHERE, f"../../..{ELSEWHERE}", f"local-dir:{ELSEWHERE}", "hf-hub:owner/name", "https://h.example/x", "a" * 5000,
    None, True, False, 0, -1, 3000, 2**31, 2**63, 10**39, 1e308, 0.5, "", "bert", [], {}, [[]], {"a": {"b": []}},
    [ELSEWHERE], {"AutoModel": "code.Model"}, "\ud800", "\x1b[31m\n", "flash_attention_2",
)  # fmt: skip


class Repositories:
    """Descriptions of a repository. An input is a MessagePack map of their names and bytes."""

    name = "repositories"
    deadline_s = 0.25
    memory_bytes = 96 * 2**20

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`."""
        rng = Random(seed << 40 | index)
        name = rng.choice(list(SEEDS))
        value = json.loads(json.dumps(SEEDS[name]))
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            _change(rng, value)
        content = json.dumps(value).encode()
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            content = bytewise.mutated(rng, content, [json.dumps(seed).encode() for seed in SEEDS.values()])
        if rng.random() < 0.02:
            content = _large(rng, content)
        packed: bytes = msgpack.packb({name: content, **dict.fromkeys(WEIGHTS, b"")})
        return packed

    def run(self, data: bytes, index: int) -> str:
        """Good, or refused in words; and what is passed on leads nowhere."""
        try:
            files = msgpack.unpackb(data)
        except Exception:
            return "no input"
        try:
            check_config_files(files)
            for name, content in files.items():
                passed = CHECKED[name](parse_map(content, name)) if name in CHECKED else None
                if name in ("config.json", "tokenizer_config.json"):
                    _check_places(passed)
        except RequestError as error:
            if error.fault is not Fault.REFUSED or not 0 < len(error.message) < 1000:
                raise Finding("refusal", f"{error.fault}: {error.message[:200]}") from None
            if not error.message.isprintable():
                raise Finding("control character", repr(error.message)[:200]) from None
            return "refused"
        return "valid"


def _check_places(value: Any) -> None:
    """Tokens may be any text, and nothing else that goes to transformers may name a place."""
    for place, text in _texts(value, ""):
        if "token" not in place and ("/" in text or ":" in text):
            raise Finding("leads elsewhere", f"{place}: {text[:100]!r}")


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{place}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, place)
    elif isinstance(value, str):
        yield place, value


def _change(rng: Random, value: Any) -> None:
    """One member changed, added or left out, at any depth."""
    while isinstance(value, dict) and rng.random() < 0.5:
        inner = [item for item in value.values() if isinstance(item, dict | list) and item]
        if not inner:
            break
        value = rng.choice(inner)
    if isinstance(value, list):
        value[rng.randrange(len(value))] = _value(rng)
        return
    match rng.randrange(3):
        case 0 if value:
            value[rng.choice(list(value))] = _value(rng)
        case 1 if value:
            del value[rng.choice(list(value))]
        case _:
            value[rng.choice(KEYS)] = _value(rng)


def _value(rng: Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))


def _large(rng: Random, content: bytes) -> bytes:
    """Deep, wide or long."""
    count = rng.choice((1000, 100_000, 3_000_000))
    return content[:-1] + rng.choice(
        (
            b', "x": ' + b"[" * count + b"]" * count + b"}",
            b', "x": [' + b"0," * count + b"0]}",
            b', "x": "' + b"a" * count + b'"}',
            b', "x": ' + b"9" * count + b"}",
            b', "x": {' + b",".join(b'"%d":{}' % i for i in range(count // 10)) + b"}}",
        )
    )
