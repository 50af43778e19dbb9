"""Pictures that resemble photographs for codecs and resizing, generated from seeds, for tests and benchmarks."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

# Pillow encodes into a buffer of an estimated size, which is too small for noise at the best quality.
ImageFile.MAXBLOCK = 2**22

Floats = npt.NDArray[np.float32]

FINEST_CELL = 2
NOISE = 2.0
"""Standard deviation of the sensor's noise, in levels."""


def photo(seed: int, width: int, height: int) -> Image.Image:
    """An RGB picture: a gradient, 1/f texture, a few flat shapes with sharp edges, and noise.

    About one bit per pixel as JPEG at quality 88, as photographs scaled for the web have.
    """
    rng = np.random.default_rng(seed)
    canvas = _gradient(rng, width, height) + _texture(rng, width, height)
    _draw_shapes(rng, canvas)
    canvas += rng.normal(0, NOISE, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    """The picture as a JPEG file, by default at quality 88."""
    return encoded(image, "JPEG", **{"quality": 88, **options})


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """The picture as a file of a format of Pillow's, with options of `Image.save`."""
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _gradient(rng: np.random.Generator, width: int, height: int) -> Floats:
    start, across, down = rng.uniform((60, -50, -50), (190, 50, 50), (3, 3)).T.astype(np.float32)
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    gradient: Floats = start + across * x + down * y
    return gradient


def _texture(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Octaves of smooth noise, each about half as strong as the next coarser one, with little colour."""
    total = np.zeros((height, width, 3), np.float32)
    cell, strength = max(width, height) / 2, 32.0
    while cell >= FINEST_CELL:
        grid = (max(2, round(height / cell)), max(2, round(width / cell)))
        grey = rng.standard_normal((*grid, 1)) + 0.3 * rng.standard_normal((*grid, 3))
        for band in range(3):
            layer = Image.fromarray(grey[:, :, band].astype(np.float32))
            total[:, :, band] += strength * np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC))
        cell, strength = cell / 2, strength * 0.55
    return total


def _draw_shapes(rng: np.random.Generator, canvas: Floats) -> None:
    """Semi-transparent boxes and discs: sharp edges at every scale."""
    height, width = canvas.shape[:2]
    for _ in range(8):
        h, w = (max(1, int(side * rng.uniform(0.04, 0.3))) for side in (height, width))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        area = canvas[top : top + h, left : left + w]
        y, x = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        inside = (x * x + y * y < 1) if rng.random() < 0.5 else np.ones((h, w), bool)
        area[inside] = area[inside] * 0.3 + rng.uniform(0, 255, 3).astype(np.float32) * 0.7
