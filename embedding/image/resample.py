"""Pillow's resampling in NumPy, with bit-identical results, for a window of the resized picture only.

Input: an array of pixels, and the resize and window of each axis. Output: the pixels of the window.

Pillow needs 600 MB to resize a 1×3000 picture to 224×672000 before it is cropped to 224×224, and 13 GB for a 1×65000
one. Computing only what the crop keeps needs almost none. Source: Pillow's `Resample.c` (precompute_coeffs, and the
passes of 8, 16 and 32 bits) and `Geometry.c` (ImagingScaleAffine).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

PRECISION_BITS = 32 - 8 - 2


def _bicubic(x: Floats) -> Floats:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: Floats) -> Floats:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


FILTERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}


@dataclass(frozen=True, slots=True)
class Axis:
    """The resize and crop along one axis.

    Args:
        source_size: pixels before the resize.
        target_size: pixels after the resize.
        start: first pixel after the resize that the crop keeps.
        length: number of pixels that the crop keeps.
    """

    source_size: int
    target_size: int
    start: int
    length: int

    @property
    def scale(self) -> float:
        """Source pixels per target pixel. Pillow holds the size of the source as a 32-bit float."""
        return float(np.float32(self.source_size)) / self.target_size


def columns_first(source_size: tuple[int, int], target_size: tuple[int, int]) -> bool:
    """Whether Pillow resizes each column (along the height) before each row. The result depends on the order, because
    the intermediate result is rounded.

    Args:
        source_size: (width, height).
        target_size: (width, height).

    Source: measured with Pillow 13.0 on 2,500 pairs of sizes, without an exception. Older releases always resize each
    row first.
    """
    return target_size[1] < source_size[1] and 2 * (source_size[0] - target_size[0]) < source_size[1] - target_size[1]


def nearest(axis: Axis) -> npt.NDArray[np.int64]:
    """The source pixel that Pillow's nearest-neighbour resize takes for each kept pixel: (length,) int64.

    Pillow computes each position by adding the scale to the previous one, and the accumulated rounding errors decide
    where two source pixels are equally near.
    """
    positions = np.full(axis.length, axis.scale)
    positions[0] = add_repeatedly(0.5 * axis.scale, axis.scale, axis.start)
    # cumsum adds one value after the other, as Pillow's loop does.
    return np.minimum(np.cumsum(positions).astype(np.int64), axis.source_size - 1)


def add_repeatedly(value: float, step: float, times: int) -> float:
    """Adds a positive `step` to `value` `times` times, with each sum rounded to a double, in far fewer iterations."""
    while times:
        before, value, times = value, value + step, times - 1
        if math.frexp(before)[1] != math.frexp(value)[1]:
            continue
        # While the exponent stays the same each sum grows by the same amount, after a first one that may round to even.
        grown = (value + step) - value
        fitting = int((math.ldexp(1.0, math.frexp(value)[1]) - value) / grown) - 1
        jump = max(0, min(times, fitting))
        value, times = value + jump * grown, times - jump
    return value


def resample_window(pixels: Values, vertical: Axis, horizontal: Axis, interpolation: str) -> Values:
    """The same pixels as from Pillow's resize followed by a crop.

    Args:
        pixels: (H, W, bands) uint8, uint16, int32 or float32.
        vertical: resize and crop along the height.
        horizontal: resize and crop along the width.
        interpolation: a key of FILTERS.

    Returns:
        (vertical.length, horizontal.length, bands) of the same dtype.
    """
    if columns_first((horizontal.source_size, vertical.source_size), (horizontal.target_size, vertical.target_size)):
        return _two_passes(pixels.swapaxes(0, 1), vertical, horizontal, interpolation).swapaxes(0, 1)
    return _two_passes(pixels, horizontal, vertical, interpolation)


def _two_passes(pixels: Values, first: Axis, second: Axis, interpolation: str) -> Values:
    """Resizes along axis 1 and then along axis 0. The first pass is limited to the rows that the second one reads."""
    start, end = _source_range(second, interpolation)
    intermediate = _pass(pixels[start:end].swapaxes(0, 1), first, 0, interpolation).swapaxes(0, 1)
    return _pass(intermediate, second, start, interpolation)


def _source_range(axis: Axis, interpolation: str) -> tuple[int, int]:
    """The range of source rows that the kept rows read."""
    if axis.source_size == axis.target_size:
        return axis.start, axis.start + axis.length
    first, taps, _ = _weights(axis, interpolation)
    return int(first[0]), int(first[-1] + taps[-1])


def _pass(pixels: Values, axis: Axis, offset: int, interpolation: str) -> Values:
    """Resizes along axis 0; row 0 of `pixels` is row `offset` of the source. As in Pillow, a pass that would not change
    the size is skipped."""
    if axis.source_size == axis.target_size:
        return pixels[axis.start - offset :][: axis.length]
    first, _, weights = _weights(axis, interpolation)
    if pixels.dtype != np.uint8:
        total = _add_rows(pixels, first - offset, weights, np.zeros((axis.length, *pixels.shape[1:])))
        return _round(total, pixels.dtype)
    scaled = weights * (1 << PRECISION_BITS)
    weights = np.where(scaled < 0, scaled - 0.5, scaled + 0.5).astype(np.int64)
    half = np.full((axis.length, *pixels.shape[1:]), 1 << (PRECISION_BITS - 1), np.int64)
    total = _add_rows(pixels, first - offset, weights, half)
    result: Values = np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)
    return result


def _add_rows(pixels: Values, first: npt.NDArray[np.int64], weights: Values, total: Values) -> Values:
    """Adds the weighted rows to `total`, one after the other, as Pillow's C code does."""
    for tap in range(weights.shape[1]):
        # Beyond the end of a filter window the weight is 0, so any row may be used.
        rows = np.minimum(first + tap, len(pixels) - 1)
        total += pixels[rows] * weights[:, tap].reshape(-1, *[1] * (pixels.ndim - 1))
    return total


def _round(total: Floats, dtype: np.dtype[Any]) -> Values:
    if dtype == np.float32:
        return total.astype(np.float32)
    whole = np.copysign(np.floor(np.abs(total) + 0.5), total)
    if dtype == np.int32:
        # The result of the conversion on x86 for a number that does not fit.
        return np.where(np.abs(whole) < 2.0**31, whole, -(2.0**31)).astype(np.int32)
    return np.clip(whole, 0, 65535).astype(dtype)


def _weights(axis: Axis, interpolation: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """For each kept pixel: its first source pixel and their number, each (length,) int64, and their weights,
    (length, taps) float64."""
    kernel, radius = FILTERS[interpolation]
    scale = axis.scale
    stretch = max(scale, 1.0)
    support = radius * stretch
    center = (np.arange(axis.start, axis.start + axis.length) + 0.5) * scale
    # Truncation towards zero, as a C cast does.
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), axis.source_size)
    taps = end - first
    index = np.arange(int(taps.max()))
    distance = ((index + first[:, None]) - center[:, None] + 0.5) * (1.0 / stretch)
    raw = np.where(index < taps[:, None], kernel(distance), 0.0)
    # cumsum adds one value after the other, as the C code does; np.sum does not.
    total = np.cumsum(raw, axis=1)[:, -1:]
    return first, taps, np.divide(raw, total, out=raw, where=total != 0.0)
