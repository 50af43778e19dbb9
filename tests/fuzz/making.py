"""Makes request bodies: both generations' requests, changed in structure and in bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np

from tests.fuzz import bytewise

PYTHON = 100
"""Extension types from here on stand for what only a handle call can bring: see `fuzz.bodies`."""
MOST_REPEATED = 500_000
"""Characters or values, of what is made larger."""
MOST_MADE = 4 * MOST_REPEATED
"""Of a whole request. What was repeated is one object in many places, and a change of it counts in each."""

RANDOM = {"name": "random/small", "dimensions": 32, "type": "random"}
GRAPH = {
    "name": "text",
    "maxBatchSize": 8,
    "sources": ["https://h.example/model.onnx"],
    "input": [{"name": "ids", "dims": [-1, 77], "dataType": "TYPE_INT64"}],
    "output": [{"name": "out", "dims": [512], "dataType": "TYPE_FP32"}],
}
CLIP = {
    "name": "ViT-B-32",
    "dimensions": 512,
    "type": "open_clip",
    "modelLocation": {"s3": {"Bucket": "b", "Key": "k/model.pt"}, "authRequired": True},
    "imagePreprocessor": "SigLIP",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "size": 336,
    "tritonTextEncoderProperties": GRAPH,
}
HF = {
    "name": "hf/e5",
    "dimensions": 384,
    "type": "hf",
    "tokens": 128,
    "poolingMethod": "mean",
    "url": "https://h/a.zip",
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def _request(
    model_key: str, modality: str, contents: list[str], model: Any, config: Any, **more: Any
) -> dict[str, Any]:
    return {"modality": modality, "contents": contents, model_key: model, "preprocessingConfig": config, **more}


SEEDS: list[dict[str, Any]] = [
    _request(
        "embeddingModelConfig",
        "language",
        ["hi"],
        {"modelName": "random/small", "modelProperties": RANDOM, "modelAuth": None, "normalizeEmbeddings": True},
        {"modality": "language", "shouldChunk": False, "textPrefix": None, "chunkConfig": None},
        device=None,
        useInferenceCache=True,
        returnIndividualError=False,
    ),
    _request(
        "modelConfig",
        "language",
        ["One. Two!", "größe 你好", ""],
        {"modelName": "hf/e5", "modelProperties": HF, "modelAuth": {"hf": {"token": "t"}}},
        {
            "modality": "language",
            "shouldChunk": True,
            "textPrefix": "passage: ",
            "chunkConfig": {"splitMethod": "sentence", "splitLength": 2, "splitOverlap": 1},
        },
        device="cpu",
    ),
    _request(
        "model_config",
        "image",
        ["https://h.example/größe {1}.jpg?a=b#c", "http://u:p@[::1]:80/a", PIXEL],
        {
            "model_name": "open_clip/ViT-B-32/openai",
            "model_properties": CLIP,
            "model_auth": {"s3": {"aws_access_key_id": "a", "aws_secret_access_key": "b"}},
            "normalize_embeddings": False,
        },
        {
            "modality": "image",
            "should_chunk": True,
            "patch_method": "simple",
            "download_timeout_ms": 3000,
            "download_thread_count": 5,
            "download_header": {"Authorization": "Bearer x"},
        },
        use_inference_cache=False,
        return_individual_error=True,
    ),
    _request(
        "embedding_model_config", "image", [PIXEL], {"modelName": "demo/clip"}, {"modality": "image"}, device="cuda:0"
    ),
]
PACKED = [msgpack.packb(seed) for seed in SEEDS]
ARRAYS = [
    np.zeros(3, np.float32),
    np.array(7),
    np.array(["a"], object),
    np.float64(0.5),
    np.zeros((0, 5), np.complex64),
]
KEYS = sorted(
    set(re.findall(r"'(\w+)':", repr([*SEEDS, RANDOM, CLIP, HF])))
    | {"localpath", "model_location", "repoId", "repo_id", "filename", "jit", "precision", "tokenizer", "more", "notes"}
    | {"trustRemoteCode", "tritonImageEncoderProperties", "nd", "data", "shape", "kind", "__class__", "$ref", ""}
)
WORDS = [
    "language", "image", "audio", "character", "word", "sentence", "passage", "frcnn", "random", "open_clip", "hf",
    "hf_stella", "no_model", "cpu", "cuda", "cuda:99", "fp16", "cls", "random/small", "demo/clip", "hf/e5-base-v2",
    "true", "no", "1", "1e3", "NaN", "", " ", "\0", "\x1b[31m", "\r\nX: y", "../../etc/passwd", "file:///etc/passwd",
    "http://", "http://[::1", "http://a:99999/", "http://%00/", "https://ａ.example/", "//h", "data:image/png;base64,",
    "data:image/;base64,====", "s3://b/k", "\u202egnp", "e\u0301" * 40, "\U0001f468\u200d\U0001f469", "ß", "İ", "ﬃ",
    "\ufeff", "\ufffe", "²", "٣", "１２", "model.onnx", "model.onnx.data",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, 2, 3, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**64 - 1, -(2**31), -(2**63),
    0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
HEADS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\x7f\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xde\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05",
    b"\xc1",
    b"\xd7\xff" + b"\xff" * 8,
    b"\x9f\x8f",
)


def make_body(seed: int, index: int) -> bytes:
    """A body of its own for each pair of numbers, always the same."""
    rng = Random(seed << 40 | index)
    number = rng.randrange(len(SEEDS))
    if rng.random() < 0.2:
        body = PACKED[number]
    else:
        request = msgpack.unpackb(PACKED[number])
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            request = _changed(rng, request)
            if _size(request) > MOST_MADE:
                request = msgpack.unpackb(PACKED[number])
        body = _packed(rng, request)
    if rng.random() < 0.3:
        for _ in range(rng.choice((1, 1, 2, 4))):
            body = bytewise.mutated(rng, body, PACKED)
    if rng.random() < 0.05:
        at = rng.randrange(len(body) + 1)
        body = body[:at] + rng.choice(HEADS) + body[at + rng.randrange(6) :]
    return bytes(body)


def _packed(rng: Random, request: Any) -> bytes:
    try:
        body: bytes = msgpack.packb(
            request,
            default=msgpack_numpy.encode,
            use_bin_type=rng.random() < 0.95,
            use_single_float=rng.random() < 0.1,
            unicode_errors="surrogatepass",
        )
    except (ValueError, OverflowError):  # nested too deeply for the packer, or too large for a single float
        body = rng.choice((b"\x91", b"\x81\xa1a", b"\xdd\x00\x00\x00\x01")) * rng.choice((100, 511, 1100, 20_000))
    return body


def _changed(rng: Random, request: Any) -> Any:
    """The request with one change somewhere in it."""
    places = list(_places(request))
    if not places or rng.random() < 0.01:
        return _value(rng)
    holder, key = rng.choice(places)
    match rng.randrange(9):
        case 0 | 1 | 2:
            holder[key] = _value(rng)
        case 3:
            del holder[key]
        case 4:
            holder[key] = _warped(rng, holder[key])
        case 5 if isinstance(holder, dict):
            holder[_spelt(rng, key)] = holder.pop(key)
        case 6 if isinstance(holder, dict):
            holder[_spelt(rng, key)] = _value(rng)
        case 7 if isinstance(holder, dict):
            holder[rng.choice(KEYS)] = _value(rng)
        case _:
            other, there = rng.choice(places)
            if key in holder if isinstance(holder, dict) else True:
                holder[key] = _copied(rng, other[there])
    return request


def _copied(rng: Random, value: Any) -> Any:
    if not isinstance(value, Mapping | list):
        return value
    try:
        return msgpack.unpackb(_packed(rng, value), strict_map_key=False, raw=False)
    except ValueError:
        return None  # too deep to be written, or deeper than can be read again


def _places(value: Any) -> Any:
    """(holder, key) of everything inside a value."""
    stack = [value]
    while stack:
        holder = stack.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, inner in items:
            yield holder, key
            stack.append(inner)


def _value(rng: Random) -> Any:
    match rng.randrange(12):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2 | 3:
            return rng.choice(NUMBERS)
        case 4 | 5 | 6:
            return rng.choice(WORDS)
        case 7:
            return rng.choice(WORDS).encode() + rng.choice((b"", b"\xff", b"\xed\xa0\x80"))
        case 8:
            code = rng.choice((0, 5, 127, *range(PYTHON, PYTHON + 8)))
            return msgpack.ExtType(code, bytes(rng.randrange(6)))
        case 9:
            return rng.choice(ARRAYS)
        case 10:
            return [_value(rng) for _ in range(rng.randrange(3))]
        case _:
            return {rng.choice(KEYS): _value(rng) for _ in range(rng.randrange(3))}


def _warped(rng: Random, value: Any) -> Any:
    """What is there, made larger, deeper or stranger."""
    if rng.random() < 0.3:
        depth = rng.choice((1, 2, 10, 100, 400, 480, 600, 960))
        return nested(depth, rng.choice(([], {})))
    match value:
        case str():
            return rng.choice(
                (
                    value.upper(),
                    value * _times(rng.choice((2, 100, 20_000)), value),
                    value + rng.choice(WORDS),
                    value[: rng.randrange(len(value) + 1)] + rng.choice(WORDS) + value[len(value) // 2 :],
                    value + chr(rng.choice((0, 0x7F, 0x85, 0x2028, 0xD800, 0xFFFF, 0x10FFFF))),
                )
            )
        case bool() | None:
            return rng.choice((str(value), 0, 1, "yes", [value]))
        case int() | float():
            return rng.choice((-value, value + 0.5, str(value), value * 2**40, [value]))
        case list():
            return rng.choice((value * _times(rng.choice((2, 50, 2000)), value), [value], {"0": value}, tuple(value)))
        case dict():
            return rng.choice(([value], {**value, **{f"k{i}": i for i in range(300)}}, list(value.items())))
    return [value]


def _times(count: int, value: str | list[Any]) -> int:
    """Changes of changes would grow without end."""
    return min(count, 1 + MOST_REPEATED // (_size(value) + 1))


def _size(value: Any) -> int:
    """Characters and values of all that is inside, counted until they are far too many."""
    size, stack = 0, [value]
    while stack and size <= MOST_MADE:
        inner = stack.pop()
        if isinstance(inner, str | bytes | list | tuple | dict):
            size += len(inner)
        if isinstance(inner, dict):
            stack += inner.values()
        elif isinstance(inner, list | tuple):
            stack += inner
    return size


def _spelt(rng: Random, key: Any) -> Any:
    """A key in another spelling."""
    if not isinstance(key, str):
        return rng.choice((str(key)[:50], 0, None))
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower()
    camel = re.sub(r"_(\w)", lambda found: found[1].upper(), key)
    return rng.choice((snake, camel, key.upper(), key + " ", key.encode(), key + "\0", key[:-1], 5))


def nested(depth: int, kind: Any) -> Any:
    """So many lists or maps, as `kind` is one or the other, one in another."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if isinstance(kind, list) else {"a": value}
    return value
