"""Resizes and crops decoded pictures with torch. The only module below `embedding.image` that imports torch.

Input: (height, width, 3 or 4) uint8. Output: the pixels of a window of the resized picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from embedding.image.resample import columns_first

Pixels = npt.NDArray[np.uint8]


def one_thread() -> None:
    """Has torch use a single thread in this process: decoders run in parallel, one picture each, and threads of torch
    within one of them would only compete for cores."""
    torch.set_num_threads(1)


def window(
    pixels: Pixels,
    covered: tuple[float, float],
    size: tuple[int, int],
    corner: tuple[int, int],
    kept: tuple[int, int],
    interpolation: str,
) -> Pixels:
    """Resizes a picture and keeps a window of it. torch's uint8 resize is Pillow's algorithm with 16-bit weights,
    always rows first.

    Args:
        pixels: (height, width, 3 or 4) uint8; a fourth channel is dropped.
        covered: (width, height) of the picture in these pixels: of one that was scaled, the last column and row may
            be covered in part only.
        size: (width, height) after the resize.
        corner: (row, column) of the first pixel that is kept.
        kept: (rows, columns) that are kept.
        interpolation: "bicubic" or "bilinear".

    Returns:
        (3, rows, columns) uint8, a view of what was resized.
    """
    across, down = covered
    (top, left), (rows, columns) = corner, kept
    # torch has vectorised code for a channels-last batch of one.
    batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    if columns_first((pixels.shape[1], pixels.shape[0]), size):
        batch = _interpolate(batch, (pixels.shape[1], down), (pixels.shape[1], size[1]), interpolation)
        down = size[1]
    batch = _interpolate(batch, (across, down), size, interpolation)
    view: Pixels = batch[0, :3, top : top + rows, left : left + columns].numpy()
    return view


def _interpolate(
    batch: torch.Tensor, covered: tuple[float, float], size: tuple[int, int], interpolation: str
) -> torch.Tensor:
    if covered == (batch.shape[3], batch.shape[2]):
        scaling: dict[str, Any] = {"size": (size[1], size[0])}
    else:
        # torch rounds the size of the result down: the product may be just below the size that it stands for.
        across, down = (wanted / side * (1 + 1e-12) for wanted, side in zip(size, covered, strict=True))
        scaling = {"scale_factor": (down, across)}
    return torch.nn.functional.interpolate(batch, **scaling, mode=interpolation, align_corners=False, antialias=True)
