"""What a request may hold and how a reply is written: protocol sheet, sections 1.3, 1.5, 2 and 3. No server here."""

from __future__ import annotations

import pickle
import struct
from copy import deepcopy
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.errors import MESSAGE_CHARS, Fault, ItemError, RequestError
from embedding.protocol import (
    ImageConfig,
    InferenceRequest,
    TextConfig,
    decode_request,
    encode_error,
    encode_result,
    parse_request,
)

# The sheet's own bytes (section 1.5): a request of the newer generation, a whole reply, an error.
REQUEST = bytes.fromhex(
    "87a86d6f64616c697479a86c616e6775616765a8636f6e74656e747391a26869a6646576696365c0b4656d62656464696e674d6f"
    "64656c436f6e66696784a96d6f64656c4e616d65ac72616e646f6d2f736d616c6caf6d6f64656c50726f7065727469657383a46e"
    "616d65ac72616e646f6d2f736d616c6caa64696d656e73696f6e7320a474797065a672616e646f6da96d6f64656c41757468c0b3"
    "6e6f726d616c697a65456d62656464696e6773c3b370726570726f63657373696e67436f6e66696784a86d6f64616c697479a86c"
    "616e6775616765ab73686f756c644368756e6bc2aa74657874507265666978c0ab6368756e6b436f6e666967c0b1757365496e66"
    "6572656e63654361636865c3b572657475726e496e646976696475616c4572726f72c2"
)
REPLY = bytes.fromhex(
    "81a6726573756c74929192a56368756e6b85c4026e64c3c40474797065a33c6634c4046b696e64c400c4057368617065"
    "9103c40464617461c40ccdcccc3dcdcc4c3e9a99993e83ab7374617475735f636f6465cd0190aa6572726f725f636f64"
    "65af696e666572656e63655f6572726f72ad6572726f725f6d657373616765a178"
)
ARRAY = bytes.fromhex(
    "85c4026e64c3c40474797065a33c6634c4046b696e64c400c40573686170659102c40464617461c4080000803f0000003f"
)

TEXT = msgpack.unpackb(REQUEST)
MODEL = TEXT["embeddingModelConfig"]
CHUNKS = {"splitMethod": "sentence", "splitLength": 2, "splitOverlap": 1}
MODEL_KEYS = ("embeddingModelConfig", "embedding_model_config", "modelConfig", "model_config")


def changed(path: str = "", value: Any = None, **members: Any) -> dict[str, Any]:
    """The sheet's request with other top-level members, and `value` at the dotted `path`."""
    request = deepcopy(TEXT) | members
    if path:
        *parents, last = path.split(".")
        place = request
        for key in parents:
            place = place[key]
        place[last] = value
    return request


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in TEXT.items() if name not in names}


def text(**config: Any) -> dict[str, Any]:
    return changed(preprocessingConfig={"modality": "language", **config})


def image(**config: Any) -> dict[str, Any]:
    return changed(modality="image", preprocessingConfig={"modality": "image", **config})


def refusal(request: object) -> str:
    """The message with which a decoded request is refused; also what its bytes are refused with."""
    with pytest.raises(RequestError) as caught:
        decode_request(msgpack.packb(request))
    assert caught.value.fault is Fault.INVALID
    return caught.value.message


# --- Requests ---


def test_the_sheets_request() -> None:
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
    assert parse_request(changed(preprocessingConfig={"textPrefix": "a "})).preprocessing_config.text_prefix == "a "


def test_unknown_members_are_ignored_everywhere() -> None:
    request = text(shouldChunk=True, chunkConfig={**CHUNKS, "more": 1}, other=[None])
    request["embeddingModelConfig"]["notes"] = {}
    request["more"] = {"deep": [{}]}
    parse_request(request)


@pytest.mark.parametrize("count", [None, 0, -1, 20])
def test_any_thread_count(count: int | None) -> None:
    parse_request(image(downloadThreadCount=count))


@pytest.mark.parametrize("method", [None, "simple", "frcnn", "dino-v1", "dino-v2", "marqo-yolo"])
def test_patch_methods(method: str | None) -> None:
    parse_request(image(shouldChunk=method is not None, patchMethod=method))


@pytest.mark.parametrize("method", ["character", "word", "sentence", "passage"])
def test_chunk_methods(method: str) -> None:
    parse_request(text(shouldChunk=True, chunkConfig=CHUNKS | {"splitMethod": method, "splitOverlap": 0}))


def test_a_request_in_python_is_taken_as_it_is() -> None:
    request = decode_request(REQUEST)
    assert parse_request(request) is request


# --- What is refused, and by which name: (field named in the message, request) ---

S3 = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}


def chunked(**config: Any) -> dict[str, Any]:
    return text(shouldChunk=True, chunkConfig=CHUNKS | config)


def with_auth(auth: Any) -> dict[str, Any]:
    return changed("embeddingModelConfig.modelAuth", auth)


INVALID: list[tuple[str, object]] = [
    ("modality", without("modality")),
    ("contents", without("contents")),
    ("embeddingModelConfig", without("embeddingModelConfig")),
    ("preprocessingConfig", without("preprocessingConfig")),
    *(
        ("modality", changed(modality=value))
        for value in ("text", "audio", "video", "LANGUAGE", "", None, 1, ["image"])
    ),
    *(("contents", changed(contents=value)) for value in ([], None, "hi", {"a": "b"}, 3)),
    *(("contents.1", changed(contents=["a", value])) for value in (1, None, 1.5, True, ["b"], {}, b"\xff")),
    *(("device", changed(device=value)) for value in (0, ["cpu"], {})),
    *(("useInferenceCache", changed(useInferenceCache=value)) for value in (None, "maybe", 2, [])),
    *(("returnIndividualError", changed(returnIndividualError=value)) for value in (None, "", {})),
    *(("embeddingModelConfig", changed(embeddingModelConfig=value)) for value in (None, "random", [], 1)),
    ("modelName", changed(embeddingModelConfig={})),
    *(("modelName", changed("embeddingModelConfig.modelName", value)) for value in (None, 1, b"random", [])),
    *(("modelProperties", changed("embeddingModelConfig.modelProperties", value)) for value in ("x", [], 1)),
    *(("normalizeEmbeddings", changed("embeddingModelConfig.normalizeEmbeddings", value)) for value in (None, "x")),
    *(("modelAuth", with_auth(value)) for value in ({}, "x", [], {"s3": S3, "hf": {"token": "t"}}, {"gcs": {}})),
    ("modelAuth.hf.token", with_auth({"hf": {}})),
    ("modelAuth.hf.token", with_auth({"hf": {"token": 5}})),
    ("aws_secret_access_key", with_auth({"s3": {"aws_access_key_id": "a"}})),
    ("aws_access_key_id", with_auth({"s3": {"aws_secret_access_key": "a"}})),
    *(("preprocessingConfig", changed(preprocessingConfig=value)) for value in (None, "language", [], 1)),
    *(("preprocessingConfig", text(modality=value)) for value in ("audio", "video", "text", None, 1, 1.5, True)),
    *(("preprocessingConfig", text(modality=value)) for value in ([], ["language"], {}, {"a": []}, b"language")),
    ("preprocessingConfig", changed(modality="image")),
    ("preprocessingConfig", changed(preprocessingConfig={"modality": "image"})),
    # For images both generations insist on the tag.
    ("preprocessingConfig", changed(modality="image", preprocessingConfig={})),
    ("chunkConfig", text(shouldChunk=True)),
    ("chunkConfig", text(shouldChunk=True, chunkConfig=None)),
    ("chunkConfig", text(shouldChunk=False, chunkConfig=CHUNKS)),
    ("chunkConfig", text(chunkConfig=CHUNKS)),
    ("shouldChunk", text(shouldChunk="perhaps")),
    ("shouldChunk", text(shouldChunk=None)),
    ("textPrefix", text(textPrefix=1)),
    ("splitMethod", chunked(splitMethod="token")),
    ("splitMethod", text(shouldChunk=True, chunkConfig={"splitLength": 2, "splitOverlap": 1})),
    *(("splitLength", chunked(splitLength=value, splitOverlap=0)) for value in (0, -1, None, "two", 1.5)),
    *(("splitOverlap", chunked(splitOverlap=value)) for value in (-1, None, "one", 0.5)),
    ("splitLength", chunked(splitLength=2, splitOverlap=2)),
    ("splitLength", chunked(splitLength=2, splitOverlap=3)),
    ("patchMethod", image(shouldChunk=True)),
    ("patchMethod", image(patchMethod="simple")),
    ("patchMethod", image(shouldChunk=True, patchMethod="overlap")),
    *(("downloadTimeoutMs", image(downloadTimeoutMs=value)) for value in (None, "soon", [], 1.5, float("nan"))),
    *(("downloadThreadCount", image(downloadThreadCount=value)) for value in ("many", [], 0.5, float("inf"))),
    *(("downloadHeader", image(downloadHeader=value)) for value in ("A: b", [], {"A": 1}, {"A": None}, {1: "a"})),
]


@pytest.mark.parametrize(("field", "request_"), INVALID, ids=lambda value: value if isinstance(value, str) else "")
def test_every_rule_names_its_field(field: str, request_: object) -> None:
    message = refusal(request_)
    assert field in message
    assert "validation error" in message


def test_modalities_must_agree() -> None:
    assert "does not support modality" in refusal(changed(modality="image"))


def test_all_problems_are_told_at_once() -> None:
    message = refusal({"invalid_field": 1})
    assert message.startswith("4 validation errors for InferenceRequest")
    assert message.count("Field required") == 4
    for field in ("modality", "contents", "embeddingModelConfig", "preprocessingConfig"):
        assert f"\n{field}: " in message


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "request", b"request", [], [REQUEST], [["modality", "image"]]])
def test_what_is_not_a_map(value: object) -> None:
    assert "must be a map" in refusal(value)


SECRET = "hunter2-is-a-secret"


@pytest.mark.parametrize(
    "request_",
    [
        with_auth({"hf": {"token": SECRET}, "s3": {}}),
        with_auth({"hf": {"token": SECRET}, "s3": {"aws_access_key_id": "a", "aws_secret_access_key": SECRET}}),
        with_auth({"s3": {"aws_secret_access_key": SECRET, "aws_session_token": SECRET}}),
        with_auth({"hf": {"token": [SECRET]}}),
        with_auth({"hf": SECRET}),
        with_auth(SECRET),
        image(downloadHeader={"Authorization": [SECRET]}),
        image(downloadHeader=SECRET),
        changed(contents=["ok", {"a": SECRET}]),
        changed("embeddingModelConfig.modelProperties", SECRET),
    ],
)
def test_errors_repeat_no_values(request_: dict[str, Any]) -> None:
    assert SECRET not in refusal(request_)


def test_credentials_are_shown_nowhere() -> None:
    request = parse_request(with_auth({"s3": S3 | {"aws_secret_access_key": SECRET, "aws_session_token": SECRET}}))
    assert SECRET not in repr(request) + str(request)


def test_an_error_stays_short_however_long_its_cause() -> None:
    """It goes into a log and into a user's browser."""
    for long in (
        text(modality="x" * 1_000_000),
        changed(contents=[1] * 10_000),
        image(downloadHeader={"x" * 10**6: 1}),
    ):
        assert len(refusal(long)) < 5_000


def test_a_message_is_of_bounded_length_and_steers_no_terminal() -> None:
    error = RequestError(Fault.REFUSED, "a\nb\r\x1b[31m\x00\x85" + "x" * 10**6)
    assert error.message.startswith(r"a" + "\n" + r"b\r\x1b[31m\x00\x85xx")
    assert len(error.message) <= MESSAGE_CHARS
    assert pickle.loads(pickle.dumps(error)).message == error.message


# --- Bytes ---


@pytest.mark.parametrize("end", range(1, len(REQUEST)))
def test_a_request_cut_anywhere_is_malformed(end: int) -> None:
    with pytest.raises(RequestError, match=r"^Invalid MessagePack format") as caught:
        decode_request(REQUEST[:end])
    assert caught.value.fault is Fault.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        REQUEST + b"\x00",
        REQUEST + REQUEST,
        b"\x81",
        b"\xc1",
        b"\x81\x90\x01",  # a list as a key
        b"\x81\x80\x01",  # a map as a key
        b"\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,  # nested too deeply
        b"\x81\xa1a" * 100_000,
        b"\xa2\xff\xfe",  # a string that is not UTF-8
        b"\xd9\x01\xed\xa0\x80",
        b"\xd7\xff" + b"\xff" * 8,  # an impossible timestamp
        b'{"modality": "language"}',
        b"GET / HTTP/1.1",
    ],
)
def test_what_is_not_messagepack(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"^Invalid MessagePack format: .+") as caught:
        decode_request(body)
    assert caught.value.fault is Fault.MALFORMED


def test_no_body() -> None:
    with pytest.raises(RequestError, match="field required") as caught:
        decode_request(b"")
    assert caught.value.fault is Fault.INVALID


def understood(call: Any, value: Any) -> None:
    """A request or a RequestError that can be told, and nothing else ever."""
    try:
        outcome = call(value)
    except RequestError as error:
        outcome = error
    if isinstance(outcome, RequestError):
        assert outcome.fault in (Fault.MALFORMED, Fault.INVALID)
        assert msgpack.unpackb(encode_error(outcome.message))["detail"]
    else:
        assert isinstance(outcome, InferenceRequest)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes(body: bytes) -> None:
    understood(decode_request, body)


@given(st.integers(0, len(REQUEST)), st.binary(max_size=4))
@settings(max_examples=400, deadline=None)
def test_any_bytes_in_the_middle_of_a_request(at: int, data: bytes) -> None:
    understood(decode_request, REQUEST[:at] + data + REQUEST[at + len(data) :])


# Everything that MessagePack can say, and lone surrogates, which a handle call can bring.
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.just("\ud800")
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**34 - 1), st.integers(0, 10**9 - 1))
    | st.sampled_from(["language", "image", "audio", "sentence", "simple"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
PATHS = [
    *TEXT,
    *(f"embeddingModelConfig.{key}" for key in MODEL),
    *(f"preprocessingConfig.{key}" for key in (*TEXT["preprocessingConfig"], "downloadHeader", "patchMethod")),
]


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_any_value(value: Any) -> None:
    understood(parse_request, value)


@given(st.sampled_from(PATHS), VALUES, st.sampled_from(["language", "image"]))
@settings(max_examples=400, deadline=None)
def test_any_value_in_any_field(path: str, value: Any, modality: str) -> None:
    request = changed(modality=modality)
    request["preprocessingConfig"]["modality"] = modality
    *parents, last = path.split(".")
    (request[parents[0]] if parents else request)[last] = value
    understood(parse_request, request)


# --- Replies ---


def test_the_sheets_reply() -> None:
    reply = encode_result([[("chunk", np.array([0.1, 0.2, 0.3], np.float32))], ItemError("x")])
    assert len(REPLY) == 129
    assert reply == REPLY


def test_the_sheets_array() -> None:
    """Keys are `bin`, in the sheet's order: with `str` keys Marqo's client finds no array."""
    assert ARRAY in encode_result([[("a", np.array([1.0, 0.5], np.float32))]])


def test_the_sheets_error() -> None:
    assert encode_error("boom") == bytes.fromhex("81a664657461696ca4626f6f6d")


def test_marqos_client_reads_what_we_write() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    results = [[("a", rows[0])], ItemError("no"), [("b", rows[1]), ("c", rows[2])]]
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
