"""`jpeg_scaling`: large plain JPEGs are scaled while they are decoded, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from benchmarks.lib.photo import encoded, jpeg, photo
from demo.pictures import EVALUATION_SEEDS, scenes
from embedding.image import jpeg as quick
from embedding.image.pixels import ImageLimits, preprocess
from embedding.image.subprocess_decoder import DecoderPool
from tests.support import corpus
from tests.support.pixels import (  # noqa: F401
    OPENAI,
    PRESETS,
    Encode,
    Pixels,
    accepted,
    encode,
    open_clip_pixels,
    spec,
)

# Damaged files make Pillow warn. The module silences that in production; pytest's own filters come before.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

FAST = ImageLimits(jpeg_scaling="fast")
WHOLE, DAMAGED, ELONGATED = corpus.whole(), corpus.damaged(), corpus.elongated()


def large(seed: int, width: int, height: int) -> Image.Image:
    """A photograph that is quick to draw: smooth where its pixels are small."""
    return photo(seed, width // 4, height // 4).resize((width, height), Image.Resampling.BICUBIC)


def divisor(data: bytes, resized: tuple[int, int] = (224, 224)) -> int:
    return quick.divisor(Image.open(BytesIO(data)), resized)


def fast(data: bytes) -> Pixels:
    return preprocess(data, OPENAI, "it", FAST)


def test_a_picture_is_scaled_while_twice_the_target_remains() -> None:
    expected = {895: 1, 896: 2, 1791: 2, 1792: 4, 3583: 4, 3584: 8, 9000: 8}
    for side, by in expected.items():
        data = jpeg(Image.new("RGB", (side, side)))
        assert divisor(data) == by, side
    wide = jpeg(Image.new("RGB", (9000, 900)))
    assert divisor(wide, (2240, 224)) == 2
    assert divisor(wide, (224, 224)) == 2


def test_colours_that_are_subsampled_along_one_axis_need_twice_as_many_pixels() -> None:
    picture = Image.new("RGB", (1800, 1800))
    assert [divisor(jpeg(picture, subsampling=subsampling)) for subsampling in (0, 1, 2)] == [4, 2, 4]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1800, 1795), (1793, 2601), (3589, 3601)])
def test_every_fraction_and_every_remainder_is_libjpegs(size: tuple[int, int], subsampling: int) -> None:
    data = jpeg(large(1, *size), subsampling=subsampling)
    image = Image.open(BytesIO(data))
    for by in quick.DIVISORS:
        scaled = quick.decode(data, image, by)
        assert scaled is not None
        drafted = Image.open(BytesIO(data))
        drafted.draft("RGB", (size[0] // by, size[1] // by))
        np.testing.assert_array_equal(scaled[:, :, :3], np.asarray(drafted))


@pytest.mark.parametrize("name", WHOLE)
def test_small_pictures_keep_their_pixels(name: str) -> None:
    if max(Image.open(BytesIO(WHOLE[name])).size) >= 900:
        pytest.skip("a large one")
    for preset in PRESETS.values():
        wanted = spec(224, *preset)
        np.testing.assert_array_equal(
            preprocess(WHOLE[name], wanted, "it", FAST), preprocess(WHOLE[name], wanted, "it")
        )


@pytest.mark.parametrize("name", DAMAGED)
def test_the_same_small_files_are_refused(name: str) -> None:
    exact, ours = (accepted(preprocess, DAMAGED[name], OPENAI, "it", limits) for limits in (ImageLimits(), FAST))
    assert (exact is None) == (ours is None)


def test_the_same_large_files_are_refused() -> None:
    data = jpeg(large(1, 1300, 1200))
    rng = np.random.default_rng(0)
    harmed = [data[:-2], data[: len(data) // 2], data[:-600] + bytes(598) + b"\xff\xd9"]
    for _ in range(40):
        flipped = bytearray(data)
        flipped[int(rng.integers(2, len(data)))] ^= 1 << int(rng.integers(8))
        harmed.append(bytes(flipped))
    verdicts = []
    for each in harmed:
        exact, ours = (accepted(preprocess, each, OPENAI, "it", limits) for limits in (ImageLimits(), FAST))
        assert (exact is None) == (ours is None)
        verdicts.append(ours is None)
    assert 0 < sum(verdicts) < len(verdicts)


def cmyk(picture: Image.Image) -> bytes:
    return jpeg(picture.convert("CMYK"))


def progressive(picture: Image.Image) -> bytes:
    return jpeg(picture, progressive=True)


def grey(picture: Image.Image) -> bytes:
    return jpeg(picture.convert("L"))


def png(picture: Image.Image) -> bytes:
    return encoded(picture, "PNG", compress_level=0)


@pytest.mark.parametrize("encoder", [cmyk, progressive, grey, png])
def test_other_large_pictures_keep_their_pixels(encoder: Callable[[Image.Image], bytes]) -> None:
    data = encoder(large(2, 1900, 1800))
    np.testing.assert_array_equal(fast(data), preprocess(data, OPENAI, "it"))


@pytest.mark.parametrize("name", ELONGATED)
def test_elongated_pictures_keep_their_pixels(name: str) -> None:
    np.testing.assert_array_equal(fast(ELONGATED[name]), preprocess(ELONGATED[name], OPENAI, "it"))


def assert_near(ours: Pixels, expected: Pixels) -> None:
    """Within what was measured for photographs: a shift of a tenth of a pixel alone is beyond it."""
    off = np.abs(ours.astype(int) - expected)
    assert 0 < off.mean() <= 0.4
    assert np.percentile(off, 99.9) <= 3


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(896, 9001), (4003, 1795), (1799, 1793), (3591, 3585)])
def test_large_jpegs_of_any_shape_are_nearly_open_clips(size: tuple[int, int], preset: str) -> None:
    data, wanted = jpeg(large(3, *size)), spec(224, *PRESETS[preset])
    assert_near(preprocess(data, wanted, "it", FAST), open_clip_pixels(data, wanted))


def test_a_rotation_in_exif_is_left_alone_as_open_clip_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = large(4, 2000, 1800)
    data = jpeg(picture, exif=exif)
    assert ImageOps.exif_transpose(Image.open(BytesIO(data))).size == (1800, 2000)
    np.testing.assert_array_equal(fast(data), fast(jpeg(picture)))
    assert_near(fast(data), open_clip_pixels(data, OPENAI))


def test_a_subprocess_scales_as_well() -> None:
    data = jpeg(large(5, 1900, 1800))
    decoders = DecoderPool(FAST)
    try:
        np.testing.assert_array_equal(decoders.decode(data, OPENAI, "it", 5.0), fast(data))
    finally:
        decoders.close()
    assert not np.array_equal(fast(data), preprocess(data, OPENAI, "it"))


def test_vectors_of_photographs_hardly_differ(encode: Encode) -> None:
    rng = np.random.default_rng(7)
    sizes = [(int(width), int(height)) for width, height in rng.integers(900, 2600, (10, 2))]
    photographs = [
        jpeg(photo(500 + i, *size), quality=(75, 88, 95)[i % 3], subsampling=i % 3) for i, size in enumerate(sizes)
    ]
    photographs.append(jpeg(large(9, 4000, 3000)))
    assert_vectors_near(encode, photographs)


def test_vectors_of_the_demos_pictures_hardly_differ(encode: Encode) -> None:
    drawn = [scene.draw(EVALUATION_SEEDS[i]) for i, scene in enumerate(scenes(10, 3))]
    enlarged = [picture.resize((picture.width * 5, picture.height * 5), Image.Resampling.BICUBIC) for picture in drawn]
    assert_vectors_near(encode, [jpeg(picture) for picture in enlarged])


def assert_vectors_near(encode: Encode, files: Sequence[bytes]) -> None:
    """Within 0.5 % of the median distance between two of the pictures, and a cosine of 0.9999."""
    exact, ours = encode([preprocess(data, OPENAI, "it") for data in files]), encode([fast(data) for data in files])
    assert sum(divisor(data) > 1 for data in files) >= len(files) / 2
    off = (exact - ours).norm(dim=1)
    assert off.max() <= 0.005 * torch.pdist(exact).median()
    assert (exact * ours).sum(1).min() >= 0.9999


@pytest.mark.parametrize("wrong", ["Fast", "", "quick", None, True])
def test_an_unknown_choice_is_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="jpeg_scaling"):
        ImageLimits(jpeg_scaling=wrong)


@pytest.mark.parametrize("size", [(1800, 1795), (1793, 2601), (3589, 3601)])
def test_pillow_resizes_what_was_scaled_as_torch_does(size: tuple[int, int]) -> None:
    """To a level or two, since their weights have 22 and 16 bits. Both know which part of the last row is picture."""
    data = jpeg(large(2, *size))
    found = preprocess(data, OPENAI, "it", ImageLimits(jpeg_scaling="fast", resize="pillow"))
    assert not np.array_equal(found, preprocess(data, OPENAI, "it", ImageLimits(resize="pillow")))
    assert np.abs(found.astype(int) - fast(data)).max() <= 2
