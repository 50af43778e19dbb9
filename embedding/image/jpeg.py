"""The quick way into a JPEG: libjpeg-turbo straight into a buffer, for files that Pillow is sure to decode alike.

Pillow's decoder is libjpeg-turbo too and gives the same pixels, but clears its memory first and copies line by
line: a third more time.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, JpegImagePlugin

Pixels = npt.NDArray[np.uint8]

# (horizontal, vertical) of luma; chroma is (1, 1): 4:4:4, 4:2:2, 4:2:0. Upsampling of other ratios has changed
# between versions of libjpeg-turbo, and two versions are at work here.
LUMA_SAMPLING = frozenset({(1, 1), (2, 1), (2, 2)})

KEPT_BYTES = 2**26
"""Of one thread's buffer: enough for 16 megapixels. What is larger gets memory of its own, and gives it back."""


class _Kept(threading.local):
    """Each thread's buffer, used again for its next picture: the kernel clears fresh memory page by page, which costs
    a tenth of a picture of 12 megapixels."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def buffer(self, height: int, width: int) -> Pixels:
        count = height * width * 4
        if count > KEPT_BYTES:
            return np.empty((height, width, 4), np.uint8)
        if self._memory.size < count:
            self._memory = np.empty(count, np.uint8)
        return self._memory[:count].reshape(height, width, 4)


_kept = _Kept()


def decode(data: bytes, image: Image.Image) -> Pixels | None:
    """Decode a plain baseline colour JPEG, at full size.

    Args:
        data: the file's bytes.
        image: the same, opened by Pillow, not loaded.

    Returns:
        (H, W, 4) uint8, red, green, blue and nothing, the same as Pillow's, valid until the calling thread decodes its
        next picture; None where Pillow must decide: what
        is not plain, and whatever libjpeg-turbo as much as warns about (truncated, corrupt, a size at odds with
        Pillow's).
    """
    if not _plain(image):
        return None
    # Our own buffer, of the size that Pillow read and the limits passed: a header that tells the decoder
    # otherwise cannot make it allocate, it is an error.
    buffer = _kept.buffer(image.height, image.width)
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGBX", buffer=buffer, strict=True)
    except (ValueError, RuntimeError):
        return None
    return decoded if decoded.shape == buffer.shape else None


def _plain(image: Image.Image) -> bool:
    """Baseline YCbCr by the letter. A Multi-Picture file is none: its format is MPO."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.format != "JPEG" or image.mode != "RGB":
        return False
    # Where scans are missing, a progressive picture is smoothed, without a warning, as the version pleases.
    if image.info.get("progressive") or image.info.get("adobe_transform", 1) != 1:
        return False
    identifiers = tuple(component[0] for component in image.layer)
    sampling = [component[1:3] for component in image.layer]
    return identifiers == (1, 2, 3) and sampling[0] in LUMA_SAMPLING and sampling[1:] == [(1, 1), (1, 1)]
