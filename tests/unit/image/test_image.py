"""Our pixels against open_clip's own transform, over the torture corpus."""

from __future__ import annotations

import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from benchmarks.lib.photo import encoded, jpeg, photo
from embedding.errors import MediaError
from embedding.image import jpeg as quick
from embedding.image.pixels import ImageLimits, ImageSpec, limit_pillow, preprocess, reference_pixels
from embedding.image.resample import Axis, nearest, resample_window
from embedding.image.subprocess_decoder import Decoders
from tests.support import corpus

# Damaged files make Pillow warn. The module silences that in production; pytest's own filters come before.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def spec(size: int | tuple[int, int] = 224, interpolation: str = "bicubic", mode: str = "shortest", fill: int = 0):
    pair = (size, size) if isinstance(size, int) else size
    return ImageSpec(pair, MEAN, STD, interpolation, mode, fill)


PRESETS = {"openai": ("bicubic", "shortest"), "siglip": ("bicubic", "squash"), "clipa": ("bilinear", "squash")}
OPENAI = spec()
WHOLE, DAMAGED, NO_PICTURES = corpus.whole(), corpus.damaged(), corpus.no_pictures()


def open_clip_transform(wanted: ImageSpec):
    cfg = PreprocessCfg(
        size=wanted.size,
        mean=wanted.mean,
        std=wanted.std,
        interpolation=wanted.interpolation,
        resize_mode=wanted.resize_mode,
        fill_color=wanted.fill_color,
    )
    return image_transform_v2(cfg, is_train=False)


def open_clip_pixels(data: bytes, wanted: ImageSpec) -> np.ndarray:
    """What open_clip's transform has before its last two steps, ToTensor and Normalize."""
    image = Image.open(BytesIO(data))
    for step in open_clip_transform(wanted).transforms[:-2]:
        image = step(image)
    return np.asarray(image).transpose(2, 0, 1)


def accepted(pixels, *args):
    """The pixels, or None for a refusal."""
    try:
        return pixels(*args)
    except MediaError:
        return None


def assert_faithful(data: bytes, wanted: ImageSpec) -> None:
    try:
        expected = open_clip_pixels(data, wanted)
    except Exception:
        expected = None
    exact, ours = (accepted(f, data, wanted, "it") for f in (reference_pixels, preprocess))
    assert (exact is None, ours is None) == (expected is None,) * 2
    if expected is None:
        return
    np.testing.assert_array_equal(exact, expected)
    assert ours.shape == (3, *wanted.size)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    if Image.open(BytesIO(data)).mode == "RGB":
        assert_close(ours, expected)
    else:
        np.testing.assert_array_equal(ours, expected)


def assert_close(ours: np.ndarray, expected: np.ndarray) -> None:
    off = np.abs(ours.astype(int) - expected)
    assert off.max() <= 2
    assert off.mean() <= 0.05


@pytest.mark.parametrize("name", WHOLE)
def test_every_picture_is_open_clips(name):
    assert accepted(preprocess, WHOLE[name], OPENAI, name) is not None
    for size, (interpolation, mode) in zip((224, 336, 256), PRESETS.values(), strict=True):
        assert_faithful(WHOLE[name], spec(size, interpolation, mode))


@pytest.mark.parametrize("size", [224, 256, 336, 384])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_and_size(preset, size):
    for name in ("jpeg", "jpeg-progressive", "jpeg-grey", "png-alpha", "png-P", "png-16", "size-1200x37"):
        assert_faithful(WHOLE[name], spec(size, *PRESETS[preset]))


@pytest.mark.parametrize("size", [(224, 224), (100, 300), (300, 100)])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_other_targets(mode, size):
    for name in ("jpeg", "jpeg-grey", "jpeg-cmyk", "png-P", "png-alpha", "size-1200x37", "size-3x500", "size-1x1"):
        for interpolation in ("bicubic", "bilinear"):
            assert_faithful(WHOLE[name], spec(size, interpolation, mode, fill=77))


@pytest.mark.parametrize("name", [*DAMAGED, *NO_PICTURES])
def test_damage_is_judged_as_open_clip_does(name):
    assert_faithful((DAMAGED | NO_PICTURES)[name], OPENAI)


def test_the_damaged_corpus_holds_both_kinds():
    verdicts = [accepted(preprocess, data, OPENAI, "it") is None for data in DAMAGED.values()]
    assert 0.2 < np.mean(verdicts) < 0.8


def test_flipped_bits_in_jpegs():
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


def test_the_normalised_tensor_is_open_clips():
    pixels = torch.from_numpy(reference_pixels(WHOLE["jpeg"], OPENAI, "it"))
    ours = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = open_clip_transform(OPENAI)(Image.open(BytesIO(WHOLE["jpeg"])))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", corpus.elongated())
def test_elongated_pictures(name):
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
def confined():
    """A process that may take 256 MiB and 3 MB for a picture, where whole resizes would take up to 13 GB."""
    decoders = Decoders(ImageLimits(max_pixels=180_000))
    yield decoders
    decoders.close()


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (3, 60_000)])
@pytest.mark.parametrize("mode", ELONGATED)
def test_an_elongated_bomb_costs_little(confined, mode, size):
    data = encoded(Image.new(mode, size), ELONGATED[mode])
    for preset in PRESETS.values():
        assert confined.decode(data, spec(224, *preset), "it", 5.0).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_what_pillow_does_not_resize_has_no_vector(mode):
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
def test_any_elongated_picture(ratio, side, lying, seed, content, mode, interpolation):
    size = (side * ratio, side) if lying else (side, side * ratio)
    image = _drawn(content, seed, size)
    if mode in ("I;16", "I;16B"):
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(levels if mode == "I;16" else levels.astype(">u2"))
    else:
        image = image.convert("L").convert(mode) if mode in ("I", "F") else image.convert(mode)
    assert_faithful(encoded(image, "JPEG" if mode == "CMYK" else "TIFF"), spec(224, interpolation))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), have=st.integers(1, 5000), want=st.integers(1, 200_000))
def test_the_nearest_pixels_are_those_of_a_loop(data, have, want):
    start = data.draw(st.integers(0, want - 1))
    length = min(300, want - start)
    loop = np.cumsum(np.concatenate([[0.5 * have / want], np.full(want - 1, have / want)]))
    found = nearest(Axis(have, want, start, length))
    np.testing.assert_array_equal(found, loop[start : start + length].astype(int).clip(max=have - 1))


@pytest.mark.parametrize(("width", "height"), [(4000, 3000), (8660, 5774)])
def test_large_photographs(width, height):
    tile = photo(9, width // 4, height // 4)
    assert_faithful(jpeg(tile.resize((width, height), Image.Resampling.BILINEAR)), OPENAI)


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg-444", "jpeg-422", "jpeg-420", "jpeg-restart", "jpeg-icc", "jpeg-garbage"]
)
def test_the_quick_decoder_serves_plain_jpegs_with_pillows_pixels(name):
    image = Image.open(BytesIO(WHOLE[name]))
    decoded = quick.decode(WHOLE[name], image)
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
def test_the_quick_decoder_leaves_the_rest_to_pillow(name):
    assert quick.decode(WHOLE[name], Image.open(BytesIO(WHOLE[name]))) is None


def test_the_quick_decoder_leaves_damage_to_pillow():
    data = jpeg(photo(1, 100, 80))
    for harmed in (data[:-2], data[: len(data) // 2], data[:-600] + bytes(598) + b"\xff\xd9"):
        assert quick.decode(harmed, Image.open(BytesIO(harmed))) is None


def test_a_header_that_lies_to_pillow_allocates_nothing():
    """Pillow reads the last frame header, libjpeg the first."""
    data = jpeg(photo(1, 100, 80))
    start = data.index(b"\xff\xc0\x00\x11")
    huge = data[: start + 5] + b"\xff\xff\xff\xff" + data[start + 9 : start + 19] + data[start:]
    assert Image.open(BytesIO(huge)).size == (100, 80)
    assert quick.decode(huge, Image.open(BytesIO(huge))) is None
    assert_faithful(huge, OPENAI)


def test_a_file_that_calls_itself_arithmetic_coded():
    data = corpus.arithmetic(jpeg(photo(1, 100, 80)))
    assert data != jpeg(photo(1, 100, 80))
    assert_faithful(data, OPENAI)


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
def test_any_picture(size, seed, content, mode, preset, target):
    image = _drawn(content, seed, size).convert("I" if mode == "I;16" else mode)
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
def test_any_jpeg(size, seed, content, quality, subsampling, progressive, preset):
    image = _drawn(content, seed, size)
    data = jpeg(image, quality=quality, subsampling=subsampling, progressive=progressive)
    assert_faithful(data, spec(224, *PRESETS[preset]))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), up=st.booleans(), interpolation=st.sampled_from(["bicubic", "bilinear"]))
def test_a_window_is_cut_from_pillows_resize(data, up, interpolation):
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


def _drawn(content: str, seed: int, size: tuple[int, int]) -> Image.Image:
    if content == "photo":
        return photo(seed, *size)
    rng = np.random.default_rng(seed)
    if content == "noise":
        return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    lines = np.indices((size[1], size[0])).sum(0) // int(rng.integers(1, 9)) % 2
    return Image.fromarray(np.repeat(lines[:, :, None] * 255, 3, 2).astype(np.uint8))


@pytest.fixture(scope="module")
def encode():
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()

    def vectors(pixels: list[np.ndarray]) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        with torch.inference_mode():
            return model.encode_image((torch.from_numpy(np.stack(pixels)) / 255 - mean) / std, normalize=True)

    return vectors


def test_embeddings_are_open_clips(encode):
    files = [jpeg(photo(seed, 400 + 90 * seed, 700), quality=80 + seed) for seed in range(10)]
    names = ("jpeg-420", "jpeg-quality-1", "png-RGB", "webp-lossy", "avif", "size-2x2", "size-1200x37", "size-500x3")
    files += [WHOLE[name] for name in names if name in WHOLE]
    files += [encoded(_drawn("stripes", seed, (446 + 60 * seed, 490)), "BMP") for seed in range(8)]
    expected, ours = (
        encode([np.array(pixels(data, OPENAI, *rest)) for data in files])
        for pixels, rest in ((open_clip_pixels, ()), (preprocess, ("it",)))
    )
    cosine = (expected * ours).sum(1)
    typical = torch.pdist(expected[:10]).median()
    assert cosine.min() >= 0.9999
    assert (expected - ours).norm(dim=1).max() <= 0.01 * typical


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
def test_refusals_say_what_marqo_says_and_name_the_content(data, says):
    with pytest.raises(MediaError, match=says) as caught:
        preprocess(data, OPENAI, "https://example.com/a.jpg")
    assert "https://example.com/a.jpg" in caught.value.message


def test_a_long_name_is_shortened():
    with pytest.raises(MediaError) as caught:
        preprocess(b"", OPENAI, "data:image/png;base64," + "A" * 5_000_000)
    assert len(caught.value.message) < 400


def test_programs_are_not_run():
    with pytest.raises(MediaError, match="cannot identify image file"):
        preprocess(NO_PICTURES["eps"], OPENAI, "it")


def test_no_file_is_decoded_before_its_size_is_looked_at(monkeypatch):
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
def test_numbers_are_shown_without_a_fraction(monkeypatch, limits):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    limit_pillow(limits)
    data = encoded(Image.new("1", (1, 1)), "PNG")
    header = data[12:16] + struct.pack(">II", 20_000, 20_000) + data[24:29]
    data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    with pytest.raises(MediaError, match=f"400000000 pixels.* exceeds limit of {limits.max_pixels} pixels"):
        preprocess(data, OPENAI, "it", limits)


def test_too_many_pixels():
    data = encoded(Image.new("1", (3000, 3000)), "PNG")
    assert preprocess(data, OPENAI, "it", ImageLimits(max_pixels=9_000_000)).shape == (3, 224, 224)
    with pytest.raises(MediaError, match="9000000 pixels exceed the limit of 8999999"):
        preprocess(data, OPENAI, "it", ImageLimits(max_pixels=8_999_999))


@pytest.mark.parametrize(("height", "refused"), [(12_000, False), (24_000, True)])
def test_pillows_own_limit(height, refused):
    data = encoded(Image.new("1", (8000, height)), "PNG")
    assert (accepted(preprocess, data, OPENAI, "it") is None) is refused


@pytest.mark.parametrize("limit", [0, -1, 178_956_971])
def test_impossible_limits(limit):
    with pytest.raises(ValueError, match="max_pixels"):
        ImageLimits(max_pixels=limit)


@pytest.mark.parametrize(
    "wrong",
    [{"interpolation": "random"}, {"interpolation": "lanczos"}, {"resize_mode": "crop"}, {"size": (0, 1)}],
)
def test_impossible_specs(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageSpec(**{"size": (224, 224), "mean": MEAN, "std": STD, **wrong})


def test_many_threads_give_what_one_gives():
    files = list(WHOLE.values())[::3]
    alone = [preprocess(data, OPENAI, "it") for data in files]
    gate = threading.Barrier(4)

    def all_files(_):
        gate.wait()
        return [preprocess(data, OPENAI, "it") for data in files]

    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(all_files, range(4)):
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
