"""Estimates the CPU time that decoding and resizing a picture will take, from its header.

Input: the bytes of a file. Output: a `Cost` in seconds. Nothing is decoded.

The estimates are meant to be too high. They are computed from nanoseconds per pixel and per byte, measured on one CPU
core with the slowest pictures of each format (noise at the best quality). A header may state wrong values, so decoding
still needs a time limit. The exception are *plain* JPEGs, whose decoding time is bounded whatever the file contains.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from embedding.image.jpeg import LUMA_SAMPLING

UNKNOWN_NS = 2000.0
"""Time for each byte of an unknown format; as slow as Pillow's decoders that are written in Python."""

UNKNOWN_MIN_S = 0.2
"""Minimum estimate for an unknown format."""

SCAN_NS = 15.0
"""Time for each block of 8 by 8 pixels in each scan of a JPEG with several scans."""

SMALL_SCANS_S = 0.1
"""Maximum estimate of a JPEG with several scans that counts as plain."""

MAX_SEGMENTS = 20_000
"""Maximum number of segments of a JPEG, scans included; encoders write a few dozen."""

MAX_HEADER_SEGMENTS = 120
MAX_EXIF_ENTRIES = 200
MAX_TIFF_ENTRIES = 200
MAX_CHUNKS = 5_000
"""Maximum number of chunks of a PNG."""

CHUNK_S = 10e-6
"""Time for each chunk of a PNG."""

INFLATED_S = 6e-3
"""Additional time for each compressed text or profile chunk of a PNG, of which Pillow inflates up to a megabyte."""

VALUE_NS = 20.0
"""Time for each value of a TIFF's tags."""

STRIP_S = 10e-6
"""Time for each strip or tile of a TIFF."""

MAX_GIF_BLOCKS = 16
SEARCHED_BYTES = 2**16
MAX_COUNTED_BYTES = 2**23
"""Size in bytes of a file above which scans are not counted, because counting would take too long by itself."""

# A marker that starts a segment, as libjpeg reads it: no stuffed zero, restart marker, TEM or fill byte.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE, _EOI, _SOS = 0xC0, 0xC1, 0xC2, 0xD9, 0xDA
_INFLATED = (b"zTXt", b"iTXt", b"iCCP")
_RAW_PPM = re.compile(rb"P[56]\s+\d{1,6}\s+\d{1,6}\s+255\s")
_TIFF_NS = {1: 20.0, 2: 35.0, 3: 35.0, 4: 35.0, 5: 35.0, 7: 60.0, 8: 35.0, 32773: 35.0, 32946: 35.0, 34925: 80.0}
"""Nanoseconds for each pixel of a TIFF, by the value of its Compression tag."""

_STRIPS = (273, 324)
"""Tags that hold the offsets of strips and tiles."""


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate of the CPU time for decoding and resizing.

    Args:
        seconds: CPU time.
        plain: True if the estimate is reliable: a JPEG whose scans are counted, which libjpeg-turbo decodes in linear
            time without holding Python's GIL, and whose header is short enough for Pillow's Python code.
    """

    seconds: float
    plain: bool = False


def estimate_cost(data: bytes) -> Cost:
    """Estimates the cost of a picture. It takes microseconds, or a few milliseconds for a large progressive JPEG.

    Args:
        data: the file's bytes, of any format.
    """
    for prefix, estimate in _ESTIMATES.items():
        if data.startswith(prefix):
            try:
                cost = estimate(data)
            except (struct.error, IndexError):
                break
            if cost is not None:
                return cost
    return Cost(max(UNKNOWN_MIN_S, len(data) * UNKNOWN_NS * 1e-9))


def block_scans(data: bytes) -> float:
    """The number of blocks in all scans of a JPEG together, since the decoder processes the blocks in each scan.

    Infinite if there are more than `MAX_SEGMENTS` segments.
    """
    blocks: dict[int, int] = {}
    total = 0
    for number, (marker, start, end) in enumerate(_segments(data)):
        if number >= MAX_SEGMENTS:
            return float("inf")
        if marker in (_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE) and not blocks:
            blocks = _blocks(data[start:end])
        elif marker == _SOS and start < end:
            components = data[start + 1 : start + 1 + 2 * data[start] : 2]
            total += sum(blocks.get(component, 0) for component in components)
    return total


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the payload of each segment, up to the end of the picture."""
    position = 2
    while found := _MARKER.search(data, position):
        start, marker = found.end(), data[found.end() - 1]
        if marker == _EOI:
            return
        length = int.from_bytes(data[start : start + 2], "big")
        yield marker, start + 2, start + length
        position = start + max(length, 2)


def _blocks(frame: bytes) -> dict[int, int]:
    """The number of blocks of each component of a frame header, by the component's identifier."""
    if len(frame) < 6:
        return {}
    height, width, count = struct.unpack_from(">HHB", frame, 1)
    components = [frame[at : at + 2] for at in range(6, 6 + 3 * count, 3) if len(frame) >= at + 2]
    sampling = {identifier: (factors >> 4 or 1, factors & 15 or 1) for identifier, factors in components}
    most = [max((pair[axis] for pair in sampling.values()), default=1) for axis in (0, 1)]
    return {
        identifier: -(-width * across // (8 * most[0])) * -(-height * down // (8 * most[1]))
        for identifier, (across, down) in sampling.items()
    }


def _cost(pixels: int, pixel_ns: float, nbytes: int, byte_ns: float) -> Cost:
    return Cost((pixels * pixel_ns + nbytes * byte_ns) * 1e-9)


def _jpeg(data: bytes) -> Cost | None:
    """None if the header is unusual or long, or if the file holds several pictures."""
    position, frame, marker, adobe, exif = 2, b"", 0, 1, 0
    for _ in range(MAX_HEADER_SEGMENTS):
        if data[position] != 0xFF:
            return None
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        payload = data[position + 4 : position + 2 + length]
        if marker == _SOS:
            break
        if length < 2 or marker in (0, 0xFF) or (marker == 0xE2 and payload.startswith(b"MPF\0")):
            return None
        if marker in (_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE):
            if frame:
                return None
            frame = bytes([marker]) + payload
        elif marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            exif += 1
            if exif > 1 or not _short_exif(payload[6:]):
                return None
        elif marker == 0xEE and payload.startswith(b"Adobe") and len(payload) >= 12:
            adobe = payload[11]
        position += 2 + length
    if marker != _SOS or not frame:
        return None
    return _frame_cost(data, frame, data[position + 4], adobe)


def _frame_cost(data: bytes, frame: bytes, components_in_first_scan: int, adobe: int) -> Cost | None:
    """The cost of a JPEG whose first scan has `components_in_first_scan` components."""
    height, width, count = struct.unpack_from(">HHB", frame, 2)
    pixels = height * width
    # A sequential JPEG whose first scan holds all components has only that scan: libjpeg refuses further ones.
    if frame[0] == _SOF_PROGRESSIVE or components_in_first_scan < count:
        if len(data) > MAX_COUNTED_BYTES:
            return None
        seconds = (pixels * 25 + block_scans(data) * SCAN_NS + len(data) * 15) * 1e-9
        # All scans were counted, so the estimate is reliable. Large ones are not plain: their decoder needs far more
        # memory, which is limited in a subprocess only.
        return Cost(seconds, seconds <= SMALL_SCANS_S)
    identifiers = tuple(frame[7 + 3 * i] for i in range(count))
    sampling = [(frame[8 + 3 * i] >> 4, frame[8 + 3 * i] & 15) for i in range(count)]
    plain = identifiers == (1, 2, 3) and adobe == 1 and frame[1] == 8
    plain = plain and sampling[0] in LUMA_SAMPLING and sampling[1:] == [(1, 1), (1, 1)]
    return Cost((pixels * 12 + len(data) * 6) * 1e-9, True) if plain else _cost(pixels, 30, len(data), 8)


def _short_exif(tiff: bytes) -> bool:
    """Whether the first EXIF directory has as few entries as cameras write. Pillow reads it with Python code, and
    copies the data to which each entry refers."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    (offset,) = struct.unpack_from(order + "I", tiff, 4)
    (entries,) = struct.unpack_from(order + "H", tiff, offset)
    return bool(entries <= MAX_EXIF_ENTRIES)


def _png(data: bytes) -> Cost | None:
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    position, inflated = 8, 0
    for number in range(MAX_CHUNKS):
        if position + 8 > len(data):
            pixel_ns = 45 if depth == 16 else 32
            return Cost((width * height * pixel_ns + len(data) * 8) * 1e-9 + number * CHUNK_S + inflated * INFLATED_S)
        length, kind = struct.unpack_from(">I4s", data, position)
        inflated += kind in _INFLATED
        position += 12 + length
    return None


def _gif(data: bytes) -> Cost | None:
    """None if the first frame is not near the start of the file: Pillow reads what precedes it with Python code."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(MAX_GIF_BLOCKS):
        if data[position] == 0x2C:
            left, top, columns, rows = struct.unpack_from("<4H", data, position + 1)
            return _cost(max(width, left + columns) * max(height, top + rows), 15, len(data), 10)
        if data[position] != 0x21:
            return None
        position += 2
        while data[position]:
            position += 1 + data[position]
            if position > SEARCHED_BYTES:
                return None
        position += 1
    return None


def _webp(data: bytes) -> Cost | None:
    kind = data[12:16]
    if data[8:12] != b"WEBP":
        return None
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (sides,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    elif kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    else:
        return None
    return _cost(width * height, 30, len(data), 20)


def _bmp(data: bytes) -> Cost | None:
    size, width, height = struct.unpack_from("<Iii", data, 14)
    (compression,) = struct.unpack_from("<I", data, 30)
    # Pillow decodes run-length compression with Python code, so it is left to the estimate of unknown formats.
    return _cost(abs(width * height), 15, len(data), 3) if size >= 40 and compression in (0, 3) else None


def _tiff(data: bytes) -> Cost | None:
    order = "<" if data[:1] == b"I" else ">"
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, offset)
    tags: dict[int, int] = {}
    values = strips = 0
    for number in range(min(entries, MAX_TIFF_ENTRIES)):
        tag, kind, count = struct.unpack_from(order + "HHI", data, offset + 2 + 12 * number)
        values += min(count, len(data))
        strips = max(strips, count if tag in _STRIPS else 0)
        if kind in (3, 4):
            (tags[tag],) = struct.unpack_from(order + "HI"[kind - 3], data, offset + 10 + 12 * number)
    pixel_ns = _TIFF_NS.get(tags.get(259, 1))
    if pixel_ns is None or entries > MAX_TIFF_ENTRIES:
        return None
    pixels = tags.get(256, 0) * tags.get(257, 0)
    return Cost((pixels * pixel_ns + len(data) * 5 + values * VALUE_NS) * 1e-9 + strips * STRIP_S)


def _avif(data: bytes) -> Cost | None:
    if data[4:8] != b"ftyp":
        return None
    sizes = [struct.unpack_from(">II", data, found.end() + 4) for found in re.finditer(b"ispe", data[:SEARCHED_BYTES])]
    pixels = max((width * height for width, height in sizes), default=0)
    return _cost(pixels, 60, len(data), 60) if pixels else None


def _jpeg2000(data: bytes) -> Cost | None:
    start = data.find(b"\xff\x4f\xff\x51", 0, SEARCHED_BYTES)
    if start < 0:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    return _cost(abs((right - left) * (bottom - top)), 200, len(data), 120)


def _ppm(data: bytes) -> Cost | None:
    """Only raw files of 8 bits, with one byte for each value. Pillow reads the others with Python code."""
    return _cost(len(data), 15, 0, 0) if _RAW_PPM.match(data) else None


_ESTIMATES: dict[bytes, Callable[[bytes], Cost | None]] = {
    b"\xff\xd8\xff": _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"RIFF": _webp,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"\xff\x4f\xff\x51": _jpeg2000,
    b"\0\0\0\x0cjP  ": _jpeg2000,
    b"P5": _ppm,
    b"P6": _ppm,
    b"\0\0\0": _avif,
}
