"""Small pictures of every format that Pillow reads: what mutations start from."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms, features

from benchmarks.lib.photo import encoded, jpeg, photo
from tests.support.corpus import interlaced, with_adobe, without_adobe

WIDTH, HEIGHT = 23, 17


def seeds() -> dict[str, bytes]:
    """Files of some hundred bytes each, by name. The same ones with the same release of Pillow."""
    return dict(_jpegs()) | dict(_pngs()) | dict(_tiffs()) | dict(_animations()) | dict(_others())


def _jpegs() -> Iterator[tuple[str, bytes]]:
    base = photo(1, WIDTH, HEIGHT)
    cmyk = jpeg(base.convert("CMYK"), quality=50)
    for sampling in (0, 1, 2):
        yield f"jpeg-{sampling}", jpeg(base, subsampling=sampling, quality=50)
    yield "jpeg-progressive", jpeg(base, progressive=True)
    yield "jpeg-restart", jpeg(base, restart_marker_blocks=1)
    yield "jpeg-grey", jpeg(base.convert("L"))
    yield "jpeg-cmyk", cmyk
    yield "jpeg-ycck", with_adobe(without_adobe(cmyk), 2)
    yield "jpeg-rgb", jpeg(base, keep_rgb=True)
    yield "jpeg-large", jpeg(photo(2, 150, 110), quality=40)
    exif = Image.Exif()
    exif[274] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "jpeg-segments", jpeg(base, exif=exif, icc_profile=profile, comment=b"c")
    yield "mpo", encoded(base, "MPO", save_all=True, append_images=[photo(2, WIDTH, HEIGHT)])


def _pngs() -> Iterator[tuple[str, bytes]]:
    base = photo(3, WIDTH, HEIGHT)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        grey = np.asarray(base.convert("L")).astype(np.uint16)
        image = Image.fromarray(grey * 257) if mode == "I;16" else base.convert(mode)
        yield f"png-{mode}", encoded(image, "PNG")
    yield "png-trns", encoded(base.quantize(16), "PNG", transparency=bytes(range(16)))
    yield "png-adam7", interlaced(base)
    yield "apng", encoded(base, "PNG", save_all=True, append_images=[photo(4, WIDTH, HEIGHT)])
    yield "png-large", encoded(photo(5, 90, 70), "PNG")


def _tiffs() -> Iterator[tuple[str, bytes]]:
    base = photo(6, WIDTH, HEIGHT)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"tiff-{compression}", encoded(base, "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield f"tiff-{compression}", encoded(base.convert("1"), "TIFF", compression=compression)
    for mode in ("L", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F"):
        yield f"tiff-{mode}", encoded(base.convert("L").convert(mode) if mode in "IF" else base.convert(mode), "TIFF")
    yield "tiff-pages", encoded(base, "TIFF", save_all=True, append_images=[photo(7, WIDTH, HEIGHT)])
    yield "tiff-big", encoded(base, "TIFF", big_tiff=True)


def _animations() -> Iterator[tuple[str, bytes]]:
    frames = [photo(seed, WIDTH, HEIGHT) for seed in (8, 9)]
    palettes = [frame.quantize(16) for frame in frames]
    yield "gif", encoded(palettes[0], "GIF")
    yield "gif-moving", encoded(palettes[0], "GIF", save_all=True, append_images=palettes[1:], transparency=3)
    yield "webp", encoded(frames[0], "WEBP")
    yield "webp-lossless", encoded(frames[0], "WEBP", lossless=True)
    yield "webp-alpha", encoded(frames[0].convert("RGBA"), "WEBP")
    yield "webp-moving", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    if features.check("avif"):
        yield "avif", encoded(frames[0], "AVIF")
        yield "avif-moving", encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])


def _others() -> Iterator[tuple[str, bytes]]:
    base = photo(10, WIDTH, HEIGHT)
    saved: dict[str, dict[str, Any]] = {
        "BMP": {}, "DIB": {}, "DDS": {}, "PCX": {}, "PPM": {}, "QOI": {}, "SGI": {}, "TGA": {}, "IM": {}, "BLP": {},
        "ICO": {"sizes": [(16, 16), (17, 17)]}, "JPEG2000": {},
    }  # fmt: skip
    for name, options in saved.items():
        image = base.quantize(16) if name == "BLP" else base
        yield name.lower(), encoded(image, name, **options)
    yield "icns", _icns(encoded(base.resize((16, 16)), "PNG"))
    yield "ico-bmp", encoded(base.resize((16, 16)), "ICO", sizes=[(16, 16)], bitmap_format="bmp")
    yield "bmp-palette", encoded(base.quantize(16), "BMP")
    yield "tga-rle", encoded(base, "TGA", compression="tga_rle")
    yield "dds-dxt1", encoded(base.resize((16, 16)), "DDS", pixel_format="DXT1")
    yield "dds-bc5", encoded(base.resize((16, 16)), "DDS", pixel_format="BC5")
    yield "j2k-codestream", encoded(base, "JPEG2000", no_jp2=True)
    yield "msp", encoded(base.convert("1"), "MSP")
    yield "xbm", encoded(base.convert("1"), "XBM")
    yield "spider", encoded(base.convert("L").convert("F"), "SPIDER")
    yield "pgm-plain", b"P2 3 2 255 1 2 3 4 5 6\n"
    yield "pfm", b"Pf 3 2 -1.0\n" + struct.pack("<6f", *range(6))
    yield "pbm", encoded(base.convert("1"), "PPM")
    yield "xpm", b'/* XPM */\nstatic char *a[] = {\n"3 2 2 1",\n"a c #ff0000",\n"b c None",\n"aba",\n"bab"};\n'
    yield "sun", struct.pack(">8I", 0x59A66A95, 4, 2, 24, 24, 1, 0, 0) + bytes(range(24))
    yield "fli", _fli()
    yield "psd", _psd()
    yield "gbr", struct.pack(">5I", 28, 2, 4, 3, 1) + b"GIMP\0\0\0\x01" + bytes(range(12))
    yield "fits", _fits()
    yield "xvthumb", b"P7 332\n#END_OF_COMMENTS\n3 2 255\n" + bytes(range(6))
    yield "mcidas", _mcidas()
    yield "pixar", _pixar()
    yield "pcd", bytes(2048) + b"PCD_" + bytes(2048)
    yield "cur", struct.pack("<3H", 0, 2, 1) + encoded(base.resize((16, 16)), "ICO", bitmap_format="bmp")[6:]
    yield "dcx", _dcx(encoded(base, "PCX"))
    yield "iptc", b"\x1c\x03\x14\0\x02\0\x03\x1c\x03\x1e\0\x02\0\x02\x1c\x03\x3c\0\x02\x01\x01\x1c\x08\x0a\0\x06abcdef"


def _fli() -> bytes:
    header = struct.pack("<IHHHHHHI", 128 + 16, 0xAF11, 1, 4, 3, 8, 0, 5).ljust(128, b"\0")
    return header + struct.pack("<IH", 16, 0xF1FA).ljust(16, b"\0")


def _psd() -> bytes:
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 2, 3, 8, 3)
    return header + struct.pack(">III", 0, 0, 0) + b"\0\0" + bytes(range(18))


def _fits() -> bytes:
    cards = ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 3", "NAXIS2  = 2", "END")
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


def _mcidas() -> bytes:
    words = [0] * 65
    words[2], words[9], words[10], words[11], words[14], words[34] = 4, 2, 3, 1, 0, 256
    return struct.pack(">64I", *words[1:]).ljust(256, b"\0") + bytes(range(16))


def _pixar() -> bytes:
    header = bytearray(1024)
    header[:4] = b"\200\350\000\000"
    header[416:420] = struct.pack("<HH", 2, 3)
    header[424:428] = struct.pack("<HH", 14, 2)
    return bytes(header) + bytes(range(18))


def _icns(picture: bytes) -> bytes:
    entry = b"icp4" + struct.pack(">I", len(picture) + 8) + picture
    return b"icns" + struct.pack(">I", len(entry) + 8) + entry


def _dcx(page: bytes) -> bytes:
    return struct.pack("<3I", 0x3ADE68B1, 12, 0) + page


def opened(data: bytes) -> str:
    """The format that Pillow takes a file for."""
    return str(Image.open(BytesIO(data)).format)
