"""Any bytes and any values where a request should be."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.errors import Fault, RequestError
from embedding.protocol import InferenceRequest, decode_request, encode_error, parse_request
from tests.support.protocol import MODEL, REQUEST, TEXT, changed


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
