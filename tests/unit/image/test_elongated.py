"""Pictures of which one side is hundreds of times the other: open_clip's pixels, at a small part of its cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.lib.photo import encoded
from embedding.errors import MediaError
from embedding.image import pixels
from embedding.image.pixels import ImageLimits, preprocess
from embedding.image.resample import Axis, nearest, resample_window
from embedding.image.subprocess_decoder import DecoderPool
from tests.support import corpus
from tests.support.pixels import OPENAI, PRESETS, assert_faithful, drawn, spec

# Damaged files make Pillow warn. The module silences that in production; pytest's own filters come before.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def smaller() -> Iterator[None]:
    """A picture counts as elongated from fewer pixels on, as the target has fewer: the reference resizes all of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "ELONGATED_PIXELS", pixels.ELONGATED_PIXELS * SIZE**2 // 224**2)
        yield


@pytest.mark.parametrize("name", corpus.elongated())
def test_elongated_pictures(name: str) -> None:
    assert_faithful(corpus.elongated()[name], spec(SIZE))


@pytest.mark.parametrize("name", ["1x3000", "palette-alpha-1x777", "16-bit-big-endian-1x900", "lab-1x600"])
def test_elongated_pictures_at_a_models_size(name: str) -> None:
    assert_faithful(corpus.elongated()[name], OPENAI)


ELONGATED = {
    "RGB": "PNG",
    "RGBA": "PNG",
    "LA": "PNG",
    "L": "PNG",
    "P": "PNG",
    "1": "PNG",
    "I;16": "PNG",
    "CMYK": "JPEG",
}
ELONGATED |= {"I;16B": "TIFF", "I": "TIFF", "F": "TIFF", "YCbCr": "TIFF", "LAB": "TIFF"}


@pytest.fixture(scope="module")
def confined() -> Iterator[DecoderPool]:
    """A process that may take 256 MiB and 3 MB for a picture, where whole resizes would take up to 13 GB."""
    decoders = DecoderPool(ImageLimits(max_pixels=180_000))
    yield decoders
    decoders.close()


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (3, 60_000)])
@pytest.mark.parametrize("mode", ELONGATED)
def test_an_elongated_bomb_costs_little(confined: DecoderPool, mode: str, size: tuple[int, int]) -> None:
    data = encoded(Image.new(mode, size), ELONGATED[mode])
    for preset in PRESETS.values():
        assert confined.decode(data, spec(224, *preset), "it", 5.0).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_what_pillow_does_not_resize_has_no_vector(mode: str) -> None:
    data = encoded(Image.new(mode, (1, 10_000_000)), "TIFF", compression="tiff_adobe_deflate")
    with pytest.raises(MediaError, match="`it` is too large: its 1 x 10000000 pixels would become 224 x 2240000000"):
        preprocess(data, OPENAI, "it")
    assert preprocess(data, spec(32), "it").shape == (3, 32, 32)


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.integers(320, 900),
    side=st.integers(1, 3),
    lying=st.booleans(),
    seed=st.integers(0, 2**16),
    content=st.sampled_from(["photo", "noise", "stripes"]),
    mode=st.sampled_from(sorted(ELONGATED)),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_any_elongated_picture(
    ratio: int, side: int, lying: bool, seed: int, content: str, mode: str, interpolation: str
) -> None:
    size = (side * ratio, side) if lying else (side, side * ratio)
    image = drawn(content, seed, size)
    if mode in ("I;16", "I;16B"):
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(levels if mode == "I;16" else levels.astype(">u2"))
    else:
        image = image.convert("L").convert(mode) if mode in ("I", "F") else image.convert(mode)
    assert_faithful(encoded(image, "JPEG" if mode == "CMYK" else "TIFF"), spec(SIZE, interpolation))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), have=st.integers(1, 5000), want=st.integers(1, 200_000))
def test_the_nearest_pixels_are_those_of_a_loop(data: st.DataObject, have: int, want: int) -> None:
    start = data.draw(st.integers(0, want - 1))
    length = min(300, want - start)
    loop = np.cumsum(np.concatenate([[0.5 * have / want], np.full(want - 1, have / want)]))
    found = nearest(Axis(have, want, start, length))
    np.testing.assert_array_equal(found, loop[start : start + length].astype(int).clip(max=have - 1))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), up=st.booleans(), interpolation=st.sampled_from(["bicubic", "bilinear"]))
def test_a_window_is_cut_from_pillows_resize(data: st.DataObject, up: bool, interpolation: str) -> None:
    small, large = (st.integers(1, 40), st.integers(1, 200)) if up else (st.integers(40, 200), st.integers(1, 60))
    height, width, rows, columns = (data.draw(part) for part in (small, small, large, large))
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    filter = getattr(Image.Resampling, interpolation.upper())
    whole = np.asarray(Image.fromarray(pixels).resize((columns, rows), filter))
    window = resample_window(
        pixels, Axis(height, rows, top, rows - top), Axis(width, columns, left, columns - left), interpolation
    )
    np.testing.assert_array_equal(window, whole[top:, left:])
