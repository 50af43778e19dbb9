"""What a picture will cost, by its header: never much less than it does, and at most a picture's worth more."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image

from benchmarks.lib.photo import encoded, jpeg, photo
from embedding.errors import MediaError, SlowError
from embedding.image.decode_cost import block_scans, estimate_cost
from embedding.image.lanes import MEDIUM_S, QUICK_S
from embedding.image.pixels import ImageLimits, ImageSpec, preprocess
from tests.support import corpus, hostile_pictures

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

SPEC = ImageSpec((224, 224), (0.5,) * 3, (0.5,) * 3)
ORDINARY: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": jpeg,
    "progressive": lambda image: jpeg(image, progressive=True),
    "grey": lambda image: jpeg(image.convert("L"), quality=95),
    "png": lambda image: encoded(image, "PNG"),
    "alpha": lambda image: encoded(image.convert("RGBA"), "PNG"),
    "gif": lambda image: encoded(image.quantize(64), "GIF"),
    "webp": lambda image: encoded(image, "WEBP"),
    "webp-lossless": lambda image: encoded(image, "WEBP", lossless=True, method=0),
    "bmp": lambda image: encoded(image, "BMP"),
    "tiff": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "ppm": lambda image: encoded(image, "PPM"),
}


@pytest.fixture(scope="module")
def ordinary() -> Image.Image:
    return photo(1, 1200, 900)


@pytest.mark.parametrize("name", ORDINARY)
def test_pictures_of_the_web_are_quick(ordinary: Image.Image, name: str) -> None:
    assert estimate_cost(ORDINARY[name](ordinary)).seconds <= QUICK_S


@pytest.mark.parametrize("name", ["avif", "jpeg2000"])
def test_slower_formats_are_of_medium_cost(name: str) -> None:
    data = encoded(photo(2, 1200, 900), name.upper())
    assert 0.01 < estimate_cost(data).seconds <= MEDIUM_S


@pytest.mark.parametrize("name", ["jpeg", "jpeg-444", "jpeg-progressive", "jpeg-restart", "jpeg-icc", "jpeg-garbage"])
def test_plain_jpegs_are_known(name: str) -> None:
    assert estimate_cost(corpus.jpegs()[name]).plain


@pytest.mark.parametrize(
    "name",
    ["jpeg-411", "jpeg-440", "jpeg-adobe-0", "jpeg-rgb", "jpeg-grey", "jpeg-cmyk", "mpo"],
)
def test_no_others_are(name: str) -> None:
    assert not estimate_cost(corpus.jpegs()[name]).plain


@pytest.mark.parametrize(
    "make",
    [
        partial(hostile_pictures.many_segments, 10_000),
        partial(hostile_pictures.many_scans, 100),
        hostile_pictures.exif_bomb,
        partial(hostile_pictures.scan_bomb, 1000),
        partial(hostile_pictures.hidden_scans, 1000),
    ],
    ids=["segments", "scans", "exif", "progressive", "hidden"],
)
def test_a_jpeg_that_is_made_to_be_slow_is_not_plain(make: Callable[[], bytes]) -> None:
    assert not estimate_cost(make()).plain


def test_no_bytes_are_too_odd_to_be_looked_at() -> None:
    rng = np.random.default_rng(0)
    for data in (corpus.whole() | corpus.no_pictures()).values():
        for cut in (0, 1, 5, 13, 20, 30, 64, 200, len(data)):
            assert estimate_cost(data[:cut]).seconds >= 0
        for _ in range(20):
            changed = bytearray(data)
            for place in rng.integers(0, min(len(data), 100) or 1, 3):
                if data:
                    changed[place] = int(rng.integers(256))
            assert estimate_cost(bytes(changed)).seconds >= 0


def test_blocks_of_all_scans_are_counted() -> None:
    assert block_scans(hostile_pictures.scan_bomb(80, bands=5, levels=3)) == 100 * 16
    # 4:2:0 of 64 by 48: 48 blocks of luma and 12 of each colour, in one scan.
    assert block_scans(jpeg(photo(1, 64, 48))) == 72
    grey = jpeg(photo(1, 64, 48).convert("L"), progressive=True)
    assert block_scans(grey) == 48 * grey.count(b"\xff\xda")


def test_more_segments_than_anybody_makes_are_not_counted() -> None:
    assert block_scans(hostile_pictures.many_segments(50_000)) == float("inf")


def test_a_scan_bomb_is_refused_before_it_is_decoded() -> None:
    data = hostile_pictures.scan_bomb(9000)
    assert len(data) < 300_000
    started = time.thread_time()
    with pytest.raises(SlowError, match=r"more than 5 s of CPU to decode.*max_decode_s"):
        preprocess(data, SPEC, "it")
    assert time.thread_time() - started < 0.5


def test_the_limit_of_seconds_is_a_setting() -> None:
    data = hostile_pictures.scan_bomb(400)
    assert preprocess(data, SPEC, "it").shape == (3, 224, 224)
    with pytest.raises(SlowError, match=r"more than 0\.005 s"):
        preprocess(data, SPEC, "it", ImageLimits(max_decode_s=0.005))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_limits(limit: float) -> None:
    with pytest.raises(ValueError, match="max_decode_s"):
        ImageLimits(max_decode_s=limit)


@pytest.mark.parametrize("side", [14_000, 20_000])
def test_a_tile_is_measured_as_a_picture_is(side: int) -> None:
    data = hostile_pictures.tile_of_a_pixel(side)
    assert len(data) < 200
    with pytest.raises(MediaError, match=f"{side * side} pixels exceed the limit"):
        preprocess(data, SPEC, "it")


def test_nothing_inside_a_picture_is_handed_to_a_program() -> None:
    """Pillow opens what an IPTC file holds as any format that it knows."""
    image = Image.new("RGB", (20, 20))
    for program in ("EPS", "WMF"):
        assert program not in Image.OPEN
    inside = hostile_pictures.iptc(encoded(image, "EPS"))
    with pytest.raises(MediaError, match="cannot identify"):
        preprocess(inside, SPEC, "it")
    white = preprocess(hostile_pictures.iptc(encoded(Image.new("L", (8, 8), 255), "PNG")), SPEC, "it")
    assert white.min() == 255


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("noise", "JPEG"), ("noise", "progressive"), ("noise", "PNG"), ("noise", "WEBP"), ("noise", "TIFF"),
        ("flat", "JPEG"), ("flat", "progressive"), ("flat", "PNG"), ("flat", "WEBP"), ("flat", "GIF"),
    ],
)  # fmt: skip
def test_estimates_are_not_too_low(name: str, kind: str, one_thread: None) -> None:
    """Thrice too low would be: cores differ, and share their caches."""
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    image = Image.fromarray(pixels) if name == "noise" else Image.new("RGB", (1200, 900), (9, 99, 200))
    format, options = ("JPEG", {"progressive": True}) if kind == "progressive" else (kind, {})
    data = encoded(image, format, **options, **({"quality": 100} if format in ("JPEG", "WEBP") else {}))
    taken = min(_taken(data) for _ in range(3))
    assert taken < 3 * estimate_cost(data).seconds


def _taken(data: bytes) -> float:
    started = time.thread_time()
    preprocess(data, SPEC, "it")
    return time.thread_time() - started
