"""Our pixels compared with those of open_clip's own transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from benchmarks.lib.photo import photo
from embedding.errors import MediaError
from embedding.image.pixels import ImageSpec, preprocess, reference_pixels

Pixels = npt.NDArray[np.uint8]
Encode = Callable[[Sequence[Pixels]], torch.Tensor]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def spec(
    size: int | tuple[int, int] = 224, interpolation: str = "bicubic", mode: str = "shortest", fill: int = 0
) -> ImageSpec:
    pair = (size, size) if isinstance(size, int) else size
    return ImageSpec(pair, MEAN, STD, interpolation, mode, fill)


PRESETS = {"openai": ("bicubic", "shortest"), "siglip": ("bicubic", "squash"), "clipa": ("bilinear", "squash")}
OPENAI = spec()


@pytest.fixture(scope="module")
def encode() -> Encode:
    """Vectors of length 1, float32 (n, dimensions), of open_clip's ViT-B-32 with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()

    def vectors(pixels: Sequence[Pixels]) -> torch.Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        with torch.inference_mode():
            normalised = (torch.from_numpy(np.stack(pixels)) / 255 - mean) / std
            encoded: torch.Tensor = model.encode_image(normalised, normalize=True)
            return encoded

    return vectors


def open_clip_transform(wanted: ImageSpec) -> Any:
    cfg = PreprocessCfg(
        size=wanted.size,
        mean=wanted.mean,
        std=wanted.std,
        interpolation=wanted.interpolation,
        resize_mode=wanted.resize_mode,
        fill_color=wanted.fill_color,
    )
    return image_transform_v2(cfg, is_train=False)


def open_clip_pixels(data: bytes, wanted: ImageSpec) -> Pixels:
    """What open_clip's transform has before its last two steps, ToTensor and Normalize."""
    image = Image.open(BytesIO(data))
    for step in open_clip_transform(wanted).transforms[:-2]:
        image = step(image)
    return np.asarray(image).transpose(2, 0, 1)


def accepted(pixels: Callable[..., Pixels], *args: Any) -> Pixels | None:
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
    if expected is None or exact is None or ours is None:
        return
    np.testing.assert_array_equal(exact, expected)
    assert ours.shape == (3, *wanted.size)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    if Image.open(BytesIO(data)).mode == "RGB":
        assert_close(ours, expected)
    else:
        np.testing.assert_array_equal(ours, expected)


def assert_close(ours: Pixels, expected: Pixels) -> None:
    off = np.abs(ours.astype(int) - expected)
    assert off.max() <= 2
    assert off.mean() <= 0.05


def drawn(content: str, seed: int, size: tuple[int, int]) -> Image.Image:
    if content == "photo":
        return photo(seed, *size)
    rng = np.random.default_rng(seed)
    if content == "noise":
        return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    lines = np.indices((size[1], size[0])).sum(0) // int(rng.integers(1, 9)) % 2
    return Image.fromarray(np.repeat(lines[:, :, None] * 255, 3, 2).astype(np.uint8))
