"""Where a picture's file says how large something is: offsets of lengths, dimensions, counts and types."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from random import Random

from tests.fuzz.bytewise import EDGES

PNG = b"\x89PNG\r\n\x1a\n"
SIDES = (0, 1, 2, 3, 16, 255, 256, 1000, 1024, 4096, 16_384, 30_000, 65_535, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
Field = tuple[int, int, str]
"""Offset, bytes, "little" or "big"."""


def mutated(rng: Random, data: bytes) -> bytes:
    """The file with one of its numbers changed, or one of its parts moved, doubled or left out."""
    if data.startswith(PNG) and rng.random() < 0.4:
        return _png(rng, data)
    fields = list(_fields(data))
    if not fields:
        return data
    at, size, order = rng.choice(fields)
    old = int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]
    new = rng.choice((*EDGES, *SIDES, old + 1, old - 1, old * 2, old << 8, len(data), rng.randrange(256)))
    changed = data[:at] + (new & ((1 << 8 * size) - 1)).to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]
    return _with_checksums(changed) if data.startswith(PNG) and rng.random() < 0.9 else changed


def _fields(data: bytes) -> Iterator[Field]:
    if data.startswith(PNG):
        for at, _, length in _chunks(data):
            yield at, 4, "big"
            yield from ((at + 8 + i, 4, "big") for i in range(0, min(length, 28) - 3, 4))
            yield from ((at + 8 + i, 1, "big") for i in range(8, min(length, 13)))
    elif data.startswith(b"\xff\xd8"):
        yield from _jpeg(data)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        yield from _tiff(data, "little" if data[0] == 0x49 else "big")
    elif data.startswith(b"RIFF"):
        yield from _riff(data)
    elif data[4:8] in (b"ftyp", b"jP  "):
        yield from _boxes(data, 0, len(data))
    else:
        # The rest has its numbers at the front, in an order of its own.
        for at in range(min(len(data) - 4, 80)):
            yield at, 1, "little"
            yield at, 2, "little"
            yield at, 4, "little"
            yield at, 2, "big"
            yield at, 4, "big"


def _jpeg(data: bytes) -> Iterator[Field]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        yield at + 1, 1, "big"
        yield at + 2, 2, "big"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            yield from ((at + 5, 2, "big"), (at + 7, 2, "big"), (at + 4, 1, "big"), (at + 9, 1, "big"))
        yield from ((at + 4 + i, 1, "big") for i in range(min(length - 2, 24)))
        if marker == 0xDA:
            return
        at += 2 + length


def _tiff(data: bytes, order: str) -> Iterator[Field]:
    start = int.from_bytes(data[4:8], order)  # type: ignore[arg-type]
    yield 4, 4, order
    count = int.from_bytes(data[start : start + 2], order)  # type: ignore[arg-type]
    yield start, 2, order
    for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 12), 12):
        yield from ((at, 2, order), (at + 2, 2, order), (at + 4, 4, order), (at + 8, 4, order), (at + 8, 2, order))
    yield start + 2 + 12 * count, 4, order


def _riff(data: bytes) -> Iterator[Field]:
    yield 4, 4, "little"
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield at + 4, 4, "little"
        yield from ((at + 8 + i, 3, "little") for i in range(min(length, 24)))
        at += 8 + length + length % 2


def _boxes(data: bytes, at: int, end: int) -> Iterator[Field]:
    while at + 8 <= end:
        length = int.from_bytes(data[at : at + 4], "big")
        yield at, 4, "big"
        stop = at + length if 8 <= length <= end - at else end
        inner = {b"meta": 12, b"iprp": 8, b"ipco": 8, b"jp2h": 8, b"moov": 8, b"trak": 8}.get(data[at + 4 : at + 8])
        if inner:
            yield from _boxes(data, at + inner, stop)
        else:
            yield from ((at + 8 + i, 4, "big") for i in range(0, min(stop - at - 8, 64), 4))
        at = stop


def _chunks(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield at, data[at + 4 : at + 8], length
        at += 12 + length


def _png(rng: Random, data: bytes) -> bytes:
    parts = [data[at : at + 12 + length] for at, _, length in _chunks(data)]
    if not parts:
        return data
    i = rng.randrange(len(parts))
    match rng.randrange(5):
        case 0:
            parts.insert(rng.randrange(len(parts) + 1), parts[i])
        case 1:
            del parts[i]
        case 2:
            parts.insert(rng.randrange(1, len(parts) + 1), parts.pop(i))
        case 3:
            kind = rng.choice(
                (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"eXIf")
            )
            body = rng.randbytes(rng.choice((0, 1, 4, 8, 26, 700)))
            if kind in (b"zTXt", b"iTXt", b"iCCP") and rng.random() < 0.5:
                body = (
                    b"a\0"
                    + (b"\1\0\0\0" if kind == b"iTXt" else b"\0")
                    + zlib.compress(bytes(rng.choice((9, 1 << 22))))
                )
            parts.insert(rng.randrange(1, len(parts) + 1), _chunk(kind, body))
        case 4:
            body = bytes(rng.choice((0, 100, 1 << 16, 1 << 22)))
            parts[i] = _chunk(b"IDAT", zlib.compress(body))
    return PNG + b"".join(parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _with_checksums(data: bytes) -> bytes:
    fixed = bytearray(data)
    for at, _, length in _chunks(data):
        end = at + 8 + length
        if end + 4 <= len(fixed):
            fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
    return bytes(fixed)
