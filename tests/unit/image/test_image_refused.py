"""Pictures that are refused: in which words, by which limits, and before they cost anything."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from benchmarks.lib.photo import encoded, jpeg, photo
from embedding.errors import MediaError
from embedding.image.pixels import ImageLimits, ImageSpec, limit_pillow, preprocess
from tests.support import corpus
from tests.support.pixels import MEAN, OPENAI, STD, accepted

# Damaged files make Pillow warn. The module silences that in production; pytest's own filters come before.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot identify image file"),
        (b"<html>", "cannot identify image file"),
        (jpeg(photo(1, 99, 99))[:1500], "Image file is truncated"),
        (encoded(photo(1, 99, 99), "PNG")[:1500], "Image file is truncated"),
        (encoded(photo(1, 99, 99), "WEBP")[:600], "could not be decoded properly"),
    ],
)
def test_refusals_say_what_marqo_says_and_name_the_content(data: bytes, says: str) -> None:
    with pytest.raises(MediaError, match=says) as caught:
        preprocess(data, OPENAI, "https://example.com/a.jpg")
    assert "https://example.com/a.jpg" in caught.value.message


def test_a_long_name_is_shortened() -> None:
    with pytest.raises(MediaError) as caught:
        preprocess(b"", OPENAI, "data:image/png;base64," + "A" * 5_000_000)
    assert len(caught.value.message) < 400


def test_programs_are_not_run() -> None:
    with pytest.raises(MediaError, match="cannot identify image file"):
        preprocess(corpus.no_pictures()["eps"], OPENAI, "it")


def test_no_file_is_decoded_before_its_size_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes an ICO as it opens it: here one that calls itself 16x16 and holds a PNG of 1000x1000."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    png = encoded(Image.new("1", (1000, 1000)), "PNG")
    ico = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png
    limits = ImageLimits(max_pixels=999_999)
    limit_pillow(limits)
    with pytest.raises(MediaError, match="too large") as caught:
        preprocess(ico, OPENAI, "it", limits)
    assert "decompression bomb" in str(caught.value)
    assert "(1000000 pixels) exceeds limit of 999999 pixels" in str(caught.value)
    limit_pillow(ImageLimits(max_pixels=1_000_000))
    assert preprocess(ico, OPENAI, "it").shape == (3, 224, 224)


@pytest.mark.parametrize("limits", [ImageLimits(), ImageLimits(max_pixels=80_000_001)])
def test_numbers_are_shown_without_a_fraction(monkeypatch: pytest.MonkeyPatch, limits: ImageLimits) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    limit_pillow(limits)
    data = encoded(Image.new("1", (1, 1)), "PNG")
    header = data[12:16] + struct.pack(">II", 20_000, 20_000) + data[24:29]
    data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(MediaError, match=f"400000000 pixels.* exceeds limit of {limits.max_pixels} pixels"):
        preprocess(data, OPENAI, "it", limits)


def test_too_many_pixels() -> None:
    data = encoded(Image.new("1", (3000, 3000)), "PNG")
    assert preprocess(data, OPENAI, "it", ImageLimits(max_pixels=9_000_000)).shape == (3, 224, 224)
    with pytest.raises(MediaError, match="9000000 pixels exceed the limit of 8999999"):
        preprocess(data, OPENAI, "it", ImageLimits(max_pixels=8_999_999))


@pytest.mark.parametrize(("height", "refused"), [(12_000, False), (24_000, True)])
def test_pillows_own_limit(height: int, refused: bool) -> None:
    data = encoded(Image.new("1", (8000, height)), "PNG")
    assert (accepted(preprocess, data, OPENAI, "it") is None) is refused


@pytest.mark.parametrize("limit", [0, -1, 178_956_971])
def test_impossible_limits(limit: int) -> None:
    with pytest.raises(ValueError, match="max_pixels"):
        ImageLimits(max_pixels=limit)


@pytest.mark.parametrize(
    "wrong",
    [{"interpolation": "random"}, {"interpolation": "lanczos"}, {"resize_mode": "crop"}, {"size": (0, 1)}],
)
def test_impossible_specs(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageSpec(**{"size": (224, 224), "mean": MEAN, "std": STD, **wrong})
