"""Resizes and crops very elongated pictures, whose resize as a whole would take gigabytes of memory.

Input: a Pillow image, and the resize and crop of each axis. Output: the same pixels as from Pillow's resize and crop,
but only those pixels that the crop keeps are computed.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from embedding.image.resample import Axis, nearest, resample_window

MAX_SIDE_PIXELS = 2**31 - 1
"""Maximum length of a side in pixels. Pillow cannot resize to more, so the reference implementation fails as well."""

# The mode to which Pillow converts before a resize (colours premultiplied by alpha).
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
_NEAREST = frozenset({"1", "P"})
_OFFSET = np.array([0, 128, 128], np.uint8)
"""Offset of the bands of "LAB": Pillow exports its colour bands as signed values, but resizes them as unsigned ones."""


def resize_window(image: Image.Image, vertical: Axis, horizontal: Axis, interpolation: str) -> Image.Image:
    """Resizes and crops a picture, and computes only the pixels that the crop keeps. They are the same as Pillow's.

    Args:
        image: of any mode.
        vertical: resize and crop along the height.
        horizontal: resize and crop along the width.
        interpolation: "bicubic" or "bilinear".

    Returns:
        An image of the crop's size and of the same mode; RGB for the modes "1" and "P", which Pillow resizes by nearest
        neighbour.

    Raises:
        DecompressionBombError: a side would be longer than `MAX_SIDE_PIXELS`.
    """
    if max(vertical.target_size, horizontal.target_size) > MAX_SIDE_PIXELS:
        raise Image.DecompressionBombError(
            f"its {image.width} x {image.height} pixels would become {horizontal.target_size} x "
            f"{vertical.target_size} before the crop; send it less elongated"
        )
    if image.mode in _NEAREST:
        return _resize_nearest(image, vertical, horizontal)
    mode = _PREMULTIPLIED.get(image.mode, image.mode)
    converted = image if mode == image.mode else image.convert(mode)
    pixels = np.asarray(converted).reshape(image.height, image.width, -1)
    if pixels.dtype.itemsize == 2:
        # Pillow's resize reads the bytes of "I;16B" as little-endian numbers, too.
        pixels = pixels.view("<u2")
    if mode == "LAB":
        window = resample_window(pixels ^ _OFFSET, vertical, horizontal, interpolation) ^ _OFFSET
    else:
        window = resample_window(pixels, vertical, horizontal, interpolation)
    result = Image.frombytes(mode, (horizontal.length, vertical.length), window.tobytes())
    if mode == "PA":
        result.putpalette(converted.getpalette() or b"")
    return result if image.mode == mode else result.convert(image.mode)


def _resize_nearest(image: Image.Image, vertical: Axis, horizontal: Axis) -> Image.Image:
    rows, columns = nearest(vertical), nearest(horizontal)
    top, left = int(rows[0]), int(columns[0])
    # Cropped before the conversion, which takes four bytes for each pixel.
    cropped = image.crop((left, top, int(columns[-1]) + 1, int(rows[-1]) + 1))
    pixels = np.asarray(cropped.convert("RGB"))
    return Image.fromarray(pixels[np.ix_(rows - top, columns - left)])
