"""How pictures must be prepared for a model, as plain data.

It imports neither torch nor Pillow, because the ingress passes it on and loads neither of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_MODES = ("shortest", "squash", "longest")

JpegScaling = Literal["exact", "fast"]
"""The operator's choice for large JPEGs: see `embedding.image.pixels.ImageLimits`."""
JPEG_SCALINGS = get_args(JpegScaling)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The parameters of open_clip's validation transform (its PreprocessCfg).

    Args:
        size: (height, width) of the result, in pixels.
        mean: of each channel (RGB), for values within 0..1; subtracted by the encoder on its device.
        std: of each channel; the encoder divides by it on its device.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (the shorter edge is resized to the size, then a centre crop), "squash" (resized without
            keeping the ratio of the sides) or "longest" (the longer edge is resized to the size, the rest is padded).
        fill_color: 0..255, the value of the padding of "longest".

    Raises:
        ValueError: an unknown mode, or a value out of range.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {INTERPOLATIONS}, not {self.interpolation!r}")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode must be one of {RESIZE_MODES}, not {self.resize_mode!r}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size must be (height, width), each at least 1, not {self.size!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std must have three values each, and std must be positive")
        if not 0 <= self.fill_color <= 255:
            raise ValueError(f"fill_color must be within 0..255, not {self.fill_color!r}")
