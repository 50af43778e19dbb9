"""Bodies of too many values are refused before they take memory; large ones of few values are read."""

import multiprocessing
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import msgpack
import pytest

from embedding.errors import Fault, RequestError
from embedding.msgpack_values import MAX_VALUES
from embedding.protocol import decode_request

SETTINGS: dict[str, Any] = {
    "modality": "language",
    "modelConfig": {"modelName": "demo/clip"},
    "preprocessingConfig": {"modality": "language"},
}
EMPTY = b"\x90"
TINY = 4 * 2**20


def array(items: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + items


def with_member(key: str, value: bytes) -> bytes:
    """A whole request with one member more, which is written already."""
    request: bytes = msgpack.packb(SETTINGS | {"contents": ["a text"]})
    name: bytes = msgpack.packb(key)
    return bytes([request[0] + 1]) + request[1:] + name + value


HOSTILE = {
    "an unknown member": with_member("more", array(EMPTY * TINY, TINY)),
    "contents": with_member("contents", array(b"\xa0" * TINY, TINY)),
    "one of the contents": with_member("contents", b"\x92\xa1a" + array(EMPTY * TINY, TINY)),
    "properties": with_member("modelConfig", b"\x81\xafmodelProperties" + array(EMPTY * TINY, TINY)),
    "a key": bytes([0x81]) + array(EMPTY * TINY, TINY) + b"\xc0",
    "no map": array(EMPTY * TINY, TINY),
    "many members": b"\xdf" + TINY.to_bytes(4, "big") + b"\xa1a\x90" * TINY,
    "many small arrays": with_member("more", array((b"\x9f" + EMPTY * 15) * 200_000, 200_000)),
    "one in the other": with_member("more", b"\x92\xc0" * TINY + b"\xc0"),
}


@pytest.fixture(scope="module")
def alone() -> Iterator[ProcessPoolExecutor]:
    """A process without threads: what they allocate would be counted too."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def refused(body: bytes) -> tuple[Fault, str, int]:
    """How a body is refused, and the most bytes that this took."""
    tracemalloc.start()
    try:
        decode_request(body)
    except RequestError as error:
        return error.fault, error.message, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    raise AssertionError("the body was not refused")


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_millions_of_tiny_values_are_refused_before_they_are_made(alone: ProcessPoolExecutor, body: bytes) -> None:
    fault, message, peak = alone.submit(refused, body).result()
    assert fault is Fault.TOO_LARGE
    assert f"more than {MAX_VALUES} values" in message
    assert peak < 2**20


@pytest.mark.parametrize(
    "contents", [["x" * 30_000_000, "y"], ["https://h.example/" + "a" * 200] * 16_384, ["é" * 9_000_000]], ids=len
)
def test_large_contents_are_read(contents: list[str]) -> None:
    assert decode_request(msgpack.packb(SETTINGS | {"contents": contents})).contents == contents


@pytest.mark.parametrize("end", [300_000, 1_200_000, -1])
def test_a_large_body_that_is_cut_off_is_malformed(end: int) -> None:
    body = msgpack.packb(SETTINGS | {"contents": ["x" * 1_000_000, "y" * 1_000_000]})
    with pytest.raises(RequestError) as refused:
        decode_request(body[:end])
    assert refused.value.fault is Fault.MALFORMED


def test_the_bound_is_exact() -> None:
    others = 16  # the map, what is in SETTINGS, `contents` with its array and text, `more` with its array

    def body(count: int) -> bytes:
        return with_member("more", array(b"\xcc\x01" * count, count))

    decode_request(body(MAX_VALUES - others))
    with pytest.raises(RequestError):
        decode_request(body(MAX_VALUES - others + 1))
