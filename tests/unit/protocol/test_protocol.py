"""What a request may hold and how a reply is written: docs/protocol.md, sections 1.3, 1.5, 2 and 3. No server here."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest

from embedding.errors import ItemError
from embedding.protocol import (
    ImageConfig,
    TextConfig,
    Vectors,
    decode_request,
    encode_error,
    encode_result,
    parse_request,
)
from tests.support.protocol import CHUNKS, MODEL, REQUEST, changed, image, text, without

# The bytes of docs/protocol.md, section 1.5: a whole reply, an array.
REPLY = bytes.fromhex(
    "81a6726573756c74929192a56368756e6b85c4026e64c3c40474797065a33c6634c4046b696e64c400c4057368617065"
    "9103c40464617461c40ccdcccc3dcdcc4c3e9a99993e83ab7374617475735f636f6465cd0190aa6572726f725f636f64"
    "65af696e666572656e63655f6572726f72ad6572726f725f6d657373616765a178"
)
ARRAY = bytes.fromhex(
    "85c4026e64c3c40474797065a33c6634c4046b696e64c400c40573686170659102c40464617461c4080000803f0000003f"
)

MODEL_KEYS = ("embeddingModelConfig", "embedding_model_config", "modelConfig", "model_config")

# --- Requests ---


def test_request_examples_of_marqos_protocol() -> None:
    assert len(REQUEST) == 295
    request = decode_request(REQUEST)
    assert request.contents == ["hi"]
    assert request.device is None
    assert request.model_settings.model_name == "random/small"
    assert request.model_settings.model_properties == {"name": "random/small", "dimensions": 32, "type": "random"}
    assert request.model_settings.normalize_embeddings
    assert request.preprocessing_config == TextConfig()
    assert request.use_inference_cache
    assert not request.return_individual_error


def test_the_defaults() -> None:
    request = parse_request(
        {
            "modality": "image",
            "contents": ["x"],
            "modelConfig": {"modelName": "a"},
            "preprocessingConfig": {"modality": "image"},
        }
    )
    assert request.model_settings.normalize_embeddings
    assert request.model_settings.model_properties is None
    assert not request.use_inference_cache
    assert request.return_individual_error
    assert request.preprocessing_config == ImageConfig(download_timeout_ms=3000)


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_four_names_of_the_model(key: str) -> None:
    request = decode_request(msgpack.packb({**without("embeddingModelConfig"), key: MODEL}))
    assert request == decode_request(REQUEST)


def snake(value: Any) -> Any:
    """The same request in snake_case; what is inside properties and headers is not ours to rename."""
    if not isinstance(value, dict):
        return value
    renamed = {"".join("_" + c.lower() if c.isupper() else c for c in key): item for key, item in value.items()}
    kept = ("model_properties", "download_header")
    return {key: item if key in kept else snake(item) for key, item in renamed.items()}


FULL = [
    text(shouldChunk=True, chunkConfig=CHUNKS, textPrefix="passage: "),
    image(
        shouldChunk=True,
        patchMethod="simple",
        downloadTimeoutMs=7,
        downloadThreadCount=3,
        downloadHeader={"A-B": "cD"},
    ),
    changed("embeddingModelConfig.modelAuth", {"hf": {"token": "t"}}, useInferenceCache=True, device="cpu"),
]


@pytest.mark.parametrize("request_", FULL)
def test_both_spellings_of_every_field(request_: dict[str, Any]) -> None:
    other = snake(request_)
    assert other.keys() != request_.keys()
    assert parse_request(other) == parse_request(request_)
    # Not because both were ignored: every field is set.
    assert parse_request(other).preprocessing_config.model_fields_set >= set(other["preprocessing_config"])


def test_text_may_leave_its_modality_out() -> None:
    config = parse_request(changed(preprocessingConfig={"textPrefix": "a "})).preprocessing_config
    assert config == TextConfig(text_prefix="a ")


def test_unknown_members_are_ignored_everywhere() -> None:
    request = text(shouldChunk=True, chunkConfig={**CHUNKS, "more": 1}, other=[None])
    request["embeddingModelConfig"]["notes"] = {}
    request["more"] = {"deep": [{}]}
    assert parse_request(request) == parse_request(text(shouldChunk=True, chunkConfig=CHUNKS))


@pytest.mark.parametrize("count", [None, 0, -1, 20])
def test_any_thread_count(count: int | None) -> None:
    config = parse_request(image(downloadThreadCount=count)).preprocessing_config
    assert isinstance(config, ImageConfig)
    assert config.download_thread_count == count


@pytest.mark.parametrize("method", [None, "simple", "frcnn", "dino-v1", "dino-v2", "marqo-yolo"])
def test_patch_methods(method: str | None) -> None:
    config = parse_request(image(shouldChunk=method is not None, patchMethod=method)).preprocessing_config
    assert isinstance(config, ImageConfig)
    assert config.patch_method == method


@pytest.mark.parametrize("method", ["character", "word", "sentence", "passage"])
def test_chunk_methods(method: str) -> None:
    chunks = CHUNKS | {"splitMethod": method, "splitOverlap": 0}
    config = parse_request(text(shouldChunk=True, chunkConfig=chunks)).preprocessing_config
    assert isinstance(config, TextConfig)
    assert config.chunk_config
    assert config.chunk_config.split_method == method


def test_a_request_in_python_is_taken_as_it_is() -> None:
    request = decode_request(REQUEST)
    assert parse_request(request) is request


# --- Replies ---


def test_reply_examples_of_marqos_protocol() -> None:
    reply = encode_result([[("chunk", np.array([0.1, 0.2, 0.3], np.float32))], ItemError("x")])
    assert len(REPLY) == 129
    assert reply == REPLY


def test_array_examples_of_marqos_protocol() -> None:
    """Keys are `bin`, in the order of docs/protocol.md: with `str` keys Marqo's client finds no array."""
    assert ARRAY in encode_result([[("a", np.array([1.0, 0.5], np.float32))]])


def test_error_examples_of_marqos_protocol() -> None:
    assert encode_error("boom") == bytes.fromhex("81a664657461696ca4626f6f6d")


def test_marqos_client_reads_what_we_write() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    results: list[Vectors | ItemError] = [[("a", rows[0])], ItemError("no"), [("b", rows[1]), ("c", rows[2])]]
    decoded = msgpack.unpackb(encode_result(results), object_hook=msgpack_numpy.decode)["result"]
    assert [len(item) for item in decoded] == [1, 3, 2]
    assert decoded[1] == {"status_code": 400, "error_code": "inference_error", "error_message": "no"}
    pairs = [*decoded[0], *decoded[2]]
    assert [key for key, _ in pairs] == ["a", "b", "c"]
    for (_, vector), row in zip(pairs, rows, strict=True):
        assert vector.dtype == np.float32
        assert vector.tobytes() == row.tobytes()


def test_a_slice_of_a_batch_is_written_by_itself() -> None:
    """Rows that are views of a whole batch, or not contiguous, must not drag their neighbours along."""
    batch = np.arange(12, dtype=np.float32).reshape(3, 4)
    for row in (batch[1], batch[:, 1]):
        packed = encode_result([[("a", row)]])
        assert struct.pack(f"<{len(row)}f", *row) in packed
        assert len(packed) < 100


def test_replies_survive_lone_surrogates() -> None:
    assert msgpack.unpackb(encode_error("bad \ud800 text"))["detail"].startswith("bad ")
    encode_result([[("\ud800", np.zeros(1, np.float32))], ItemError("\udfff")])
