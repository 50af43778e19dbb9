"""Our pixels against open_clip's own transform, over the torture corpus."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.lib.photo import encoded, jpeg, photo
from embedding.image.pixels import ImageLimits, preprocess, reference_pixels
from tests.support import corpus
from tests.support.pixels import (  # noqa: F401
    MEAN,
    OPENAI,
    PRESETS,
    STD,
    Encode,
    Pixels,
    accepted,
    assert_faithful,
    drawn,
    encode,
    open_clip_pixels,
    open_clip_transform,
    spec,
)

# Damaged files make Pillow warn. The module silences that in production; pytest's own filters come before.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

WHOLE, DAMAGED, NO_PICTURES = corpus.whole(), corpus.damaged(), corpus.no_pictures()


@pytest.mark.parametrize("name", WHOLE)
def test_every_picture_is_open_clips(name: str) -> None:
    assert accepted(preprocess, WHOLE[name], OPENAI, name) is not None
    for size, (interpolation, mode) in zip((224, 336, 256), PRESETS.values(), strict=True):
        assert_faithful(WHOLE[name], spec(size, interpolation, mode))


@pytest.mark.parametrize("name", [*WHOLE, *DAMAGED, *NO_PICTURES])
def test_with_pillow_it_is_the_reference(name: str) -> None:
    """Bit by bit, which torch's resize is not."""
    data = (WHOLE | DAMAGED | NO_PICTURES)[name]
    for wanted in (OPENAI, spec(256, *PRESETS["siglip"])):
        expected = accepted(reference_pixels, data, wanted, name)
        found = accepted(preprocess, data, wanted, name, ImageLimits(resize="pillow"))
        if expected is None:
            assert found is None
        else:
            assert found is not None
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [224, 256, 336, 384])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_and_size(preset: str, size: int) -> None:
    for name in ("jpeg", "jpeg-progressive", "jpeg-grey", "png-alpha", "png-P", "png-16", "size-1200x37"):
        assert_faithful(WHOLE[name], spec(size, *PRESETS[preset]))


@pytest.mark.parametrize("size", [(224, 224), (100, 300), (300, 100)])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_other_targets(mode: str, size: tuple[int, int]) -> None:
    for name in ("jpeg", "jpeg-grey", "jpeg-cmyk", "png-P", "png-alpha", "size-1200x37", "size-3x500", "size-1x1"):
        for interpolation in ("bicubic", "bilinear"):
            assert_faithful(WHOLE[name], spec(size, interpolation, mode, fill=77))


@pytest.mark.parametrize("name", [*DAMAGED, *NO_PICTURES])
def test_damage_is_judged_as_open_clip_does(name: str) -> None:
    assert_faithful((DAMAGED | NO_PICTURES)[name], OPENAI)


def test_the_damaged_corpus_holds_both_kinds() -> None:
    verdicts = [accepted(preprocess, data, OPENAI, "it") is None for data in DAMAGED.values()]
    assert 0.2 < np.mean(verdicts) < 0.8


def test_the_normalised_tensor_is_open_clips() -> None:
    pixels = torch.from_numpy(reference_pixels(WHOLE["jpeg"], OPENAI, "it"))
    ours = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = open_clip_transform(OPENAI)(Image.open(BytesIO(WHOLE["jpeg"])))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(4000, 3000), (8660, 5774)])
def test_large_photographs(width: int, height: int) -> None:
    tile = photo(9, width // 4, height // 4)
    assert_faithful(jpeg(tile.resize((width, height), Image.Resampling.BILINEAR)), OPENAI)


ALL_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    seed=st.integers(0, 2**16),
    content=st.sampled_from(["photo", "noise", "stripes"]),
    mode=st.sampled_from(ALL_MODES),
    preset=st.sampled_from(sorted(PRESETS)),
    target=st.sampled_from([32, 64, 224]),
)
def test_any_picture(size: tuple[int, int], seed: int, content: str, mode: str, preset: str, target: int) -> None:
    image = drawn(content, seed, size).convert("I" if mode == "I;16" else mode)
    if mode == "I;16":
        image = image.convert("I;16")
    assert_faithful(encoded(image, "TIFF"), spec(target, *PRESETS[preset]))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    seed=st.integers(0, 2**16),
    content=st.sampled_from(["photo", "noise", "stripes"]),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from([0, 1, 2]),
    progressive=st.booleans(),
    preset=st.sampled_from(sorted(PRESETS)),
)
def test_any_jpeg(
    size: tuple[int, int], seed: int, content: str, quality: int, subsampling: int, progressive: bool, preset: str
) -> None:
    image = drawn(content, seed, size)
    data = jpeg(image, quality=quality, subsampling=subsampling, progressive=progressive)
    assert_faithful(data, spec(224, *PRESETS[preset]))


def test_embeddings_are_open_clips(encode: Encode) -> None:
    files = [jpeg(photo(seed, 400 + 90 * seed, 700), quality=80 + seed) for seed in range(6)]
    names = ("jpeg-420", "jpeg-quality-1", "png-RGB", "webp-lossy", "avif", "size-2x2", "size-1200x37", "size-500x3")
    files += [WHOLE[name] for name in names if name in WHOLE]
    files += [encoded(drawn("stripes", seed, (446 + 60 * seed, 490)), "BMP") for seed in range(4)]
    expected, ours = (
        encode([np.array(pixels(data, OPENAI, *rest)) for data in files])
        for pixels, rest in ((open_clip_pixels, ()), (preprocess, ("it",)))
    )
    cosine = (expected * ours).sum(1)
    typical = torch.pdist(expected[:6]).median()
    assert cosine.min() >= 0.9999
    assert (expected - ours).norm(dim=1).max() <= 0.01 * typical


def test_many_threads_give_what_one_gives() -> None:
    files = list(WHOLE.values())[::3]
    alone = [preprocess(data, OPENAI, "it") for data in files]
    gate = threading.Barrier(4)

    def all_files(_: int) -> list[Pixels]:
        gate.wait()
        return [preprocess(data, OPENAI, "it") for data in files]

    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(all_files, range(4)):
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
