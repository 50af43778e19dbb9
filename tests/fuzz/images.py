"""Pictures' bytes, changed, through what a preprocessor calls for them, and now and then through the reference."""

from __future__ import annotations

from io import BytesIO
from random import Random

import numpy as np
import torch
from PIL import Image

from embedding.errors import MediaError
from embedding.image.pixels import ImageLimits, ImageSpec, Pixels, limit_pillow, preprocess, reference_pixels
from tests.fuzz import bytewise, headers
from tests.fuzz.pictures import seeds
from tests.fuzz.target import Finding

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
SPECS = [
    ImageSpec((24, 24), MEAN, STD),
    ImageSpec((24, 24), MEAN, STD, "bicubic", "squash"),
    ImageSpec((20, 28), MEAN, STD, "bilinear", "shortest"),
    ImageSpec((24, 24), MEAN, STD, "bicubic", "longest", 127),
]
LIMITS = ImageLimits(1 << 20, max_decode_s=0.4)
COMPARED = 8
"""Of so many inputs one goes through the reference too."""


class Images:
    """Files through `preprocess`."""

    name = "images"
    deadline_s = 1.0
    # A megapixel takes 4 MB, and Pillow holds a few of them at a time; an elongated one is resized to 16 megapixels.
    memory_bytes = 160 * 2**20

    def __init__(self) -> None:
        torch.set_num_threads(1)
        limit_pillow(LIMITS)
        self._seeds = list(seeds().values())

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`."""
        rng = Random(seed << 40 | index)
        data = rng.choice(self._seeds)
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            data = headers.mutated(rng, data) if rng.random() < 0.5 else bytewise.mutated(rng, data, self._seeds)
        return data

    def run(self, data: bytes, index: int) -> str:
        """Pixels of the right shape, or a `MediaError` that can be told; nothing else."""
        spec = SPECS[index // COMPARED % len(SPECS)]
        ours, reason = _pixels(preprocess, data, spec)
        if index % COMPARED == 0:
            reference, why = _pixels(reference_pixels, data, spec)
            if (ours is None) != (reference is None):
                raise Finding("decides otherwise", f"than the reference: {reason or 'pixels'} / {why or 'pixels'}")
            if ours is not None and reference is not None:
                _compare(ours, reference, data)
        return reason or "pixels"


def _pixels(function: object, data: bytes, spec: ImageSpec) -> tuple[Pixels | None, str]:
    try:
        pixels: Pixels = function(data, spec, "it", LIMITS)  # type: ignore[operator]
    except MediaError as error:
        cause = error.__cause__
        if isinstance(cause, MemoryError):
            raise Finding("memory", "ran out of it") from None
        if not 0 < len(error.message) < 1000:
            raise Finding("message", f"{len(error.message)} characters") from None
        return None, f"refused: {type(cause).__name__}"
    if pixels.shape != (3, *spec.size) or pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
        raise Finding("wrong pixels", f"{pixels.shape} {pixels.dtype}")
    return pixels, ""


def _compare(ours: Pixels, reference: Pixels, data: bytes) -> None:
    off = np.abs(ours.astype(np.int16) - reference)
    allowed = 2 if Image.open(BytesIO(data)).mode == "RGB" else 0
    if off.max() > allowed:
        raise Finding("other pixels", f"than the reference: off by up to {off.max()}, on average {off.mean():.3f}")
