"""The quick decoder of plain JPEGs: Pillow's pixels for those, and all others are left to Pillow."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from benchmarks.lib.photo import jpeg, photo
from embedding.image import jpeg as quick
from embedding.image.pixels import preprocess
from tests.support import corpus
from tests.support.pixels import OPENAI, accepted, assert_faithful, spec

# Damaged files make Pillow warn. The module silences that in production; pytest's own filters come before.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg-444", "jpeg-422", "jpeg-420", "jpeg-restart", "jpeg-icc", "jpeg-garbage"]
)
def test_the_quick_decoder_serves_plain_jpegs_with_pillows_pixels(name: str) -> None:
    image = Image.open(BytesIO(corpus.whole()[name]))
    decoded = quick.decode(corpus.whole()[name], image)
    assert decoded is not None
    np.testing.assert_array_equal(decoded[:, :, :3], np.asarray(image))


@pytest.mark.parametrize(
    "name",
    [
        "jpeg-progressive",
        "jpeg-411",
        "jpeg-440",
        "jpeg-adobe-0",
        "jpeg-rgb",
        "jpeg-grey",
        "jpeg-cmyk",
        "mpo",
        "png-RGB",
    ],
)
def test_the_quick_decoder_leaves_the_rest_to_pillow(name: str) -> None:
    assert quick.decode(corpus.whole()[name], Image.open(BytesIO(corpus.whole()[name]))) is None


def test_the_quick_decoder_leaves_damage_to_pillow() -> None:
    data = jpeg(photo(1, 100, 80))
    for harmed in (data[:-2], data[: len(data) // 2], data[:-600] + bytes(598) + b"\xff\xd9"):
        assert quick.decode(harmed, Image.open(BytesIO(harmed))) is None


def test_flipped_bits_in_jpegs() -> None:
    """The decoder of the fast path is not Pillow's: many more damaged files for it than for the others."""
    rng = np.random.default_rng(0)
    refused = 0
    for source in (jpeg(photo(1, 90, 70)), jpeg(photo(2, 64, 50), subsampling=0), jpeg(photo(3, 61, 75), quality=60)):
        for _ in range(250):
            flipped = bytearray(source)
            flipped[int(rng.integers(2, len(source)))] ^= 1 << int(rng.integers(8))
            assert_faithful(bytes(flipped), spec(64))
            refused += accepted(preprocess, bytes(flipped), spec(64), "it") is None
    assert refused > 5


def test_a_header_that_lies_to_pillow_allocates_nothing() -> None:
    """Pillow reads the last frame header, libjpeg the first."""
    data = jpeg(photo(1, 100, 80))
    start = data.index(b"\xff\xc0\x00\x11")
    huge = data[: start + 5] + b"\xff\xff\xff\xff" + data[start + 9 : start + 19] + data[start:]
    assert Image.open(BytesIO(huge)).size == (100, 80)
    assert quick.decode(huge, Image.open(BytesIO(huge))) is None
    assert_faithful(huge, OPENAI)


def test_a_file_that_calls_itself_arithmetic_coded() -> None:
    data = corpus.arithmetic(jpeg(photo(1, 100, 80)))
    assert data != jpeg(photo(1, 100, 80))
    assert_faithful(data, OPENAI)
