"""Counts the values of a MessagePack body before it is decoded, and refuses a body that holds too many.

An empty list takes one byte in a body and some 80 bytes as a Python object. So a limit on the bytes of a body alone
would let the decoded values take a hundred times as much memory.
"""

from __future__ import annotations

import msgpack

from embedding.errors import Fault, RequestError

MAX_VALUES = 250_000
"""Maximum for one body; a request of 16,384 items has some 16,500."""
READ_BYTES = 64 * 2**10
# First bytes of containers. Source: the MessagePack specification.
ARRAYS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))


class _Reader:
    """A binary file over existing bytes, without a copy (`io.BytesIO` would copy a bytearray)."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = memoryview(data)
        self._at = 0

    def read(self, count: int) -> bytes:
        part = bytes(self._data[self._at : self._at + count])
        self._at += len(part)
        return part


def check_values(body: bytes | bytearray) -> None:
    """Reads a body once, without creating Python objects for its values.

    Raises:
        RequestError: TOO_LARGE; it holds more than `MAX_VALUES` values, where keys and containers count as values.
        Exception: one of msgpack's own types; it is not MessagePack.
    """
    if len(body) <= MAX_VALUES:
        return  # each value takes a byte or more
    reader = msgpack.Unpacker(_Reader(body), read_size=READ_BYTES, max_buffer_size=len(body))
    seen, expected = 0, 1
    while seen < expected:
        first = body[reader.tell() : reader.tell() + 1]
        seen += 1
        if first and first[0] in ARRAYS:
            expected += reader.read_array_header()
        elif first and first[0] in MAPS:
            expected += 2 * reader.read_map_header()
        else:
            reader.skip()
        if expected > MAX_VALUES:
            raise RequestError(
                Fault.TOO_LARGE, f"The request body holds more than {MAX_VALUES} values; send several requests"
            )
