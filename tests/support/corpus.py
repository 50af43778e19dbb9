"""The torture corpus: every kind of picture that strangers send, whole and damaged, made here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, ImageCms, features

from benchmarks.lib.photo import encoded, jpeg, photo

Corpus = dict[str, bytes]


@cache
def whole() -> Corpus:
    """Pictures that the reference accepts, by name."""
    return {**jpegs(), **pngs(), **animations(), **tiffs(), **others(), **odd_sizes()}


@cache
def damaged() -> Corpus:
    """Pictures cut, flipped and prolonged: the reference accepts some of them and refuses others."""
    base = photo(5, 150, 110)
    sources = {
        "jpeg": jpeg(base),
        "progressive": jpeg(base, progressive=True),
        "444": jpeg(base, subsampling=0),
        "restart": jpeg(base, restart_marker_blocks=4),
        "grey": jpeg(base.convert("L")),
        "cmyk": jpeg(base.convert("CMYK")),
        "png": encoded(base, "PNG"),
        "palette": encoded(base.convert("P"), "PNG"),
        "adam7": interlaced(base.resize((40, 30))),
        "webp": encoded(base, "WEBP"),
        "gif": encoded(base, "GIF"),
        "bmp": encoded(base, "BMP"),
        "tiff": encoded(base, "TIFF", compression="tiff_lzw"),
        "tiff-raw": encoded(base, "TIFF"),
    }
    if features.check("avif"):
        sources["avif"] = encoded(base, "AVIF")
    return {
        f"{name}-{harm}": data
        for name, source in sources.items()
        for harm, data in _harmed(source, seed=zlib.crc32(name.encode()))
    }


@cache
def no_pictures() -> Corpus:
    return {
        "empty": b"",
        "html": b"<!doctype html><html><body>404</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"></svg>',
        "eps": encoded(photo(1, 20, 20), "EPS"),
        "zeros": bytes(1000),
        "jpeg-start": b"\xff\xd8\xff",
        "png-signature": b"\x89PNG\r\n\x1a\n",
    }


@cache
def jpegs() -> Corpus:
    base = photo(1, 320, 243)
    rgb, grey, cmyk = np.asarray(base), base.convert("L"), base.convert("CMYK")
    plain = jpeg(base)
    corpus = {
        "jpeg": plain,
        "jpeg-progressive": jpeg(base, progressive=True),
        "jpeg-optimized": jpeg(base, optimize=True),
        "jpeg-restart": jpeg(base, restart_marker_blocks=2),
        "jpeg-grey": jpeg(grey),
        "jpeg-cmyk": jpeg(cmyk),
        "jpeg-cmyk-no-adobe": without_adobe(jpeg(cmyk)),
        "jpeg-ycck": with_adobe(without_adobe(jpeg(cmyk)), 2),
        "jpeg-ycck-no-0-transform": with_adobe(without_adobe(jpeg(cmyk)), 0),
        "jpeg-rgb": jpeg(base, keep_rgb=True),
        "jpeg-adobe-0": with_adobe(plain, 0),
        "jpeg-adobe-1": with_adobe(plain, 1),
        "jpeg-icc": jpeg(base, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        "jpeg-comment": jpeg(base, comment=b"x" * 3000),
        "jpeg-quality-1": jpeg(base, quality=1),
        "jpeg-quality-100": jpeg(base, quality=100),
        "jpeg-garbage": plain + bytes(range(256)) * 8,
        "jpeg-twice": plain + plain,
        "mpo": encoded(base, "MPO", save_all=True, append_images=[photo(2, 320, 243)]),
    }
    for sampling in ("444", "422", "420", "440", "411"):
        corpus[f"jpeg-{sampling}"] = simplejpeg.encode_jpeg(rgb, 88, colorsubsampling=sampling)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        corpus[f"jpeg-orientation-{orientation}"] = jpeg(base, exif=exif)
    return corpus


def pngs() -> Corpus:
    base = photo(2, 301, 260)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 301).astype(np.uint8), (260, 1)))
    rgba, deep = base.copy(), np.asarray(base.convert("L")).astype(np.uint16) * 257
    rgba.putalpha(alpha)
    palette = base.quantize(64)
    corpus = {f"png-{mode}": encoded(base.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    return corpus | {
        "png-alpha": encoded(rgba, "PNG"),
        "png-grey-alpha": encoded(rgba.convert("LA"), "PNG"),
        "png-16": encoded(Image.fromarray(deep), "PNG"),
        "png-16-dark": encoded(Image.fromarray(deep // 200), "PNG"),
        "png-palette-trns-index": encoded(palette, "PNG", transparency=3),
        "png-palette-trns-bytes": encoded(palette, "PNG", transparency=bytes(range(64))),
        "png-grey-trns": encoded(base.convert("L"), "PNG", transparency=100),
        "png-rgb-trns": encoded(base, "PNG", transparency=(1, 2, 3)),
        "png-adam7": interlaced(base.resize((61, 47))),
        "png-garbage": encoded(base, "PNG") + b"trailing" * 100,
        "png-transparent-red": encoded(Image.new("RGBA", (300, 300), (200, 0, 0, 0)), "PNG"),
        "png-transparent-red-224": encoded(Image.new("RGBA", (224, 224), (200, 0, 0, 0)), "PNG"),
    }


def animations() -> Corpus:
    frames = [photo(seed, 260, 230) for seed in (3, 4)]
    clear = [frame.quantize(32) for frame in frames]
    rgba = frames[0].copy()
    rgba.putalpha(128)
    return {
        "gif": encoded(frames[0], "GIF"),
        "gif-transparent": encoded(clear[0], "GIF", transparency=5),
        "gif-animated": encoded(clear[0], "GIF", save_all=True, append_images=clear[1:], transparency=5),
        "webp-lossy": encoded(frames[0], "WEBP"),
        "webp-lossless": encoded(frames[0], "WEBP", lossless=True),
        "webp-alpha": encoded(rgba, "WEBP"),
        "webp-animated": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "apng": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
    }


def tiffs() -> Corpus:
    base = photo(6, 280, 250)
    grey = np.asarray(base.convert("L"))
    corpus = {
        f"tiff-{name}": encoded(base, "TIFF", compression=name)
        for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    return corpus | {
        "tiff-group4": encoded(base.convert("1"), "TIFF", compression="group4"),
        "tiff-16": encoded(Image.fromarray(grey.astype(np.uint16) * 3), "TIFF"),
        "tiff-32": encoded(Image.fromarray(grey.astype(np.int32) * 2 - 100), "TIFF"),
        "tiff-float": encoded(Image.fromarray(grey.astype(np.float32) * 1.5 - 20), "TIFF"),
        "tiff-pages": encoded(base, "TIFF", save_all=True, append_images=[photo(7, 280, 250)]),
        "tiff-cmyk": encoded(base.convert("CMYK"), "TIFF"),
        "tiff-ycbcr": encoded(base.convert("YCbCr"), "TIFF"),
        "tiff-lab": encoded(base.convert("LAB"), "TIFF"),
    }


def others() -> Corpus:
    base = photo(8, 250, 270)
    corpus = {
        "bmp": encoded(base, "BMP"),
        "bmp-palette": encoded(base.convert("P"), "BMP"),
        "ppm": encoded(base, "PPM"),
        "ico": encoded(base.resize((64, 64)), "ICO"),
        "icns": encoded(base.resize((128, 128)), "ICNS"),
        "tga": encoded(base, "TGA"),
        "jpeg2000": encoded(base, "JPEG2000"),
        "pcx": encoded(base, "PCX"),
        "qoi": encoded(base, "QOI"),
    }
    if features.check("avif"):
        corpus |= {"avif": encoded(base, "AVIF"), "avif-alpha": encoded(base.convert("RGBA"), "AVIF")}
    return corpus


def odd_sizes() -> Corpus:
    sizes = [(1, 1), (2, 2), (3, 500), (500, 3), (224, 224), (224, 300), (300, 224), (223, 225), (1200, 37)]
    corpus = {f"size-{w}x{h}": jpeg(photo(w + h, w, h)) for w, h in sizes}
    return corpus | {
        "size-png-2x2": encoded(photo(1, 2, 2), "PNG"),
        "size-rgba-1x1": encoded(photo(1, 1, 1).convert("RGBA"), "PNG"),
        "size-palette-2x9": encoded(photo(1, 2, 9).convert("P"), "PNG"),
    }


@cache
def elongated() -> Corpus:
    """Their shortest edge scaled to the target, they cost the reference hundreds of megabytes."""
    return {
        "1x3000": jpeg(photo(1, 1, 3000)),
        "3000x1": jpeg(photo(2, 3000, 1)),
        "grey-2x1500": encoded(photo(3, 2, 1500).convert("L"), "PNG"),
        "alpha-900x1": encoded(photo(4, 900, 1).convert("RGBA"), "PNG"),
        "grey-alpha-1x900": encoded(photo(4, 1, 900).convert("LA"), "PNG"),
        "cmyk-900x1": jpeg(photo(5, 900, 1).convert("CMYK")),
        "palette-1x700": encoded(photo(6, 1, 700).convert("P"), "PNG"),
        "palette-1x3000": encoded(photo(6, 1, 3000).convert("P"), "PNG"),
        "palette-2500x2": encoded(photo(7, 2500, 2).quantize(17), "PNG", transparency=3),
        "palette-alpha-1x777": encoded(photo(7, 1, 777).quantize(64), "PNG", transparency=bytes(range(64))),
        "palette-gif-1501x2": encoded(photo(8, 1501, 2).quantize(40), "GIF"),
        "bilevel-3x4001": encoded(photo(8, 3, 4001).convert("1"), "PNG"),
        "bilevel-999x1": encoded(photo(9, 999, 1).convert("1"), "TIFF", compression="group4"),
        "16-bit-1x2000": encoded(_deep(10, 1, 2000), "PNG"),
        "16-bit-1501x2": encoded(_deep(11, 1501, 2), "TIFF"),
        "16-bit-big-endian-1x900": encoded(_deep(12, 1, 900).convert("I;16B"), "TIFF"),
        "32-bit-2x1001": encoded(Image.fromarray(_levels(13, 2, 1001) * 3 - 200), "TIFF"),
        "float-1203x1": encoded(Image.fromarray(_levels(14, 1203, 1).astype(np.float32) * 1.3 - 20), "TIFF"),
        "lab-1x600": encoded(photo(15, 1, 600).convert("LAB"), "TIFF"),
        "ycbcr-1x600": encoded(photo(16, 1, 600).convert("YCbCr"), "TIFF"),
    }


def _levels(seed: int, width: int, height: int) -> npt.NDArray[np.int32]:
    return np.asarray(photo(seed, width, height).convert("L")).astype(np.int32)


def _deep(seed: int, width: int, height: int) -> Image.Image:
    """Of 16 bits, with levels on both sides of what 8 bits hold."""
    return Image.fromarray((_levels(seed, width, height) * 2).astype(np.uint16))


def without_adobe(data: bytes) -> bytes:
    """Drop the APP14 segment."""
    start = data.index(b"\xff\xee")
    (length,) = struct.unpack(">H", data[start + 2 : start + 4])
    return data[:start] + data[start + 2 + length :]


def with_adobe(data: bytes, transform: int) -> bytes:
    """Put an APP14 segment right behind the start of image."""
    segment = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    return data[:2] + b"\xff\xee" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def arithmetic(data: bytes) -> bytes:
    """A baseline file that says of itself that it is arithmetic-coded."""
    return data.replace(b"\xff\xc0\x00\x11", b"\xff\xc9\x00\x11", 1)


def interlaced(image: Image.Image) -> bytes:
    """A PNG of an RGB picture with Adam7 interlacing, which Pillow reads but does not write."""
    pixels = np.asarray(image.convert("RGB"))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = (row for y, x, dy, dx in passes for row in pixels[y::dy, x::dx] if row.size)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _harmed(data: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    for part in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99):
        yield f"cut-{part}", data[: int(len(data) * part)]
    for missing in (1, 2, 3, 10):
        yield f"cut-last-{missing}", data[:-missing]
    yield "garbage", data + rng.bytes(500)
    yield "hole", data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :]
    for number in range(20):
        flipped = bytearray(data)
        for place in rng.integers(0, len(data), 1 + number % 3):
            flipped[place] ^= 1 << int(rng.integers(8))
        yield f"flip-{number}", bytes(flipped)
