"""How many values a MessagePack body holds, found out before any of them is made.

An empty list is one byte of a body and some eighty bytes of Python: without a bound on their number, a body within its
limit of bytes takes a hundred times that much memory.
"""

from __future__ import annotations

import msgpack

from embedding.errors import Fault, RequestError

MOST_VALUES = 250_000
"""Of one body; a request of 16,384 contents has some 16,500."""
READ_BYTES = 64 * 2**10
# First bytes of containers. Source: the MessagePack specification.
ARRAYS = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))


class _Reader:
    """A file of bytes that somebody else holds: `io.BytesIO` would copy a bytearray."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = memoryview(data)
        self._at = 0

    def read(self, count: int) -> bytes:
        part = bytes(self._data[self._at : self._at + count])
        self._at += len(part)
        return part


def check_values(body: bytes | bytearray) -> None:
    """Reads a body through once, and makes nothing of it.

    Raises:
        RequestError: TOO_LARGE if it holds more than `MOST_VALUES` values, keys and containers among them.
        Exception: msgpack's own, of several types, if it is not MessagePack.
    """
    if len(body) <= MOST_VALUES:
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
        if expected > MOST_VALUES:
            raise RequestError(
                Fault.TOO_LARGE, f"The request body holds more than {MOST_VALUES} values; send several requests"
            )
