"""Decodes plain JPEGs with libjpeg-turbo directly into a buffer, for files that Pillow decodes to the same pixels.

Pillow uses libjpeg-turbo as well and gives the same pixels, but it clears its memory first and copies line by line,
which takes a third more time.

Where the operator has chosen it, large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size: libjpeg-turbo then computes
one pixel from each square of 2, 4 or 8 pixels, out of the low frequencies of a block.
"""

from __future__ import annotations

import threading
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, JpegImagePlugin

Pixels = npt.NDArray[np.uint8]

# (horizontal, vertical) sampling factors of luma where chroma has (1, 1): 4:4:4, 4:2:2, 4:2:0. Upsampling of other
# ratios has changed between versions of libjpeg-turbo, and Pillow and simplejpeg may contain different versions.
LUMA_SAMPLING = frozenset({(1, 1), (2, 1), (2, 2)})

DIVISORS = (8, 4, 2)
"""libjpeg-turbo has vectorised code for these fractions only."""

LEFT_TO_RESIZE = 2
"""How many times as long as the result each side of a scaled picture is at least, so that the resize that follows still
decides what is seen: its filter spans at least eight pixels of the scaled picture."""

MAX_BUFFER_BYTES = 2**26
"""Maximum size of a thread's buffer: enough for 16 megapixels. A larger picture gets new memory, which is freed."""


class _ThreadBuffer(threading.local):
    """A buffer for each thread, reused for its next picture. Otherwise the kernel would clear new memory page by page,
    which takes a tenth of the time of a picture of 12 megapixels."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def buffer(self, height: int, width: int) -> Pixels:
        count = height * width * 4
        if count > MAX_BUFFER_BYTES:
            return np.empty((height, width, 4), np.uint8)
        if self._memory.size < count:
            self._memory = np.empty(count, np.uint8)
        return self._memory[:count].reshape(height, width, 4)


_thread_buffer = _ThreadBuffer()


def divisor(image: Image.Image, resized: tuple[int, int]) -> int:
    """By how much a picture may be scaled while it is decoded, so that each of its sides stays `LEFT_TO_RESIZE` times
    as long as after the resize.

    Args:
        image: opened by Pillow but not loaded.
        resized: (width, height) after the resize.

    Returns:
        2, 4 or 8; 1 if it must be decoded at its full size: it is not large enough, or not a plain JPEG.
    """
    if not _is_plain(image):
        return 1
    times = min(side // (LEFT_TO_RESIZE * wanted) for side, wanted in zip(image.size, resized, strict=True))
    if image.layer[0][1] != image.layer[0][2]:
        # Of colours that are subsampled along one axis only, libjpeg-turbo keeps half as much when it scales.
        times //= 2
    return next((each for each in DIVISORS if each <= times), 1)


def decode(data: bytes, image: Image.Image, divisor: int = 1) -> Pixels | None:
    """Decodes a plain baseline colour JPEG. Thread-safe.

    Args:
        data: the file's bytes.
        image: the same file, opened by Pillow but not loaded.
        divisor: 1, or one of `DIVISORS`: by how much both sides are divided.

    Returns:
        (H / divisor, W / divisor, 4), rounded up, uint8 with red, green, blue and an unused channel; at full size the
        same values as Pillow's. The array is valid until the calling thread decodes its next picture. None if Pillow
        must decode the file: it is not plain, or libjpeg-turbo reports a warning or an error (truncated, corrupt, or
        another size than Pillow has read).
    """
    if not _is_plain(image):
        return None
    # The buffer has the size that Pillow has read and that has been checked against the limits. If libjpeg-turbo reads
    # a larger size it fails, and does not allocate memory.
    height, width = (-(-side // divisor) for side in (image.height, image.width))
    buffer = _thread_buffer.buffer(height, width)
    # simplejpeg takes the smallest fraction of libjpeg-turbo's that is not smaller than this.
    least = {"min_height": height, "min_width": width, "min_factor": divisor}
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGBX", buffer=buffer, strict=True, **least)
    except (ValueError, RuntimeError):
        return None
    return decoded if decoded.shape == buffer.shape else None


def _is_plain(image: Image.Image) -> TypeGuard[JpegImagePlugin.JpegImageFile]:
    """Whether a picture is a baseline JPEG in YCbCr with usual sampling. A Multi-Picture file (format MPO) is not."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.format != "JPEG" or image.mode != "RGB":
        return False
    # If scans are missing, libjpeg-turbo smooths a progressive picture without a warning, and versions differ in how.
    if image.info.get("progressive") or image.info.get("adobe_transform", 1) != 1:
        return False
    identifiers = tuple(component[0] for component in image.layer)
    sampling = [component[1:3] for component in image.layer]
    return identifiers == (1, 2, 3) and sampling[0] in LUMA_SAMPLING and sampling[1:] == [(1, 1), (1, 1)]
