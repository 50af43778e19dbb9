"""Pictures so elongated that a resize of the whole would take gigabytes, of which the crop keeps next to nothing."""

from __future__ import annotations

import numpy as np
from PIL import Image

from embedding.image.resample import Axis, nearest, resample_window

MOST_PIXELS = 2**31 - 1
"""Of a side: Pillow resizes to no more, and so the reference has no vector either."""

# The mode in which Pillow resizes (colours multiplied by alpha), where it is another one.
_WEIGHTED = {"LA": "La", "RGBA": "RGBa"}
_NEAREST = frozenset({"1", "P"})
_OFFSET = np.array([0, 128, 128], np.uint8)
"""Of the bands of "LAB": Pillow gives its colours with a sign, and resizes them without."""


def resize_window(image: Image.Image, vertical: Axis, horizontal: Axis, interpolation: str) -> Image.Image:
    """Resizes and crops, computing only what the crop keeps, to the same pixels as Pillow.

    Args:
        image: of any mode.
        vertical: the rows' resize and crop.
        horizontal: the columns' resize and crop.
        interpolation: "bicubic" or "bilinear".

    Returns:
        A picture of the crop's size, of the same mode; RGB for "1" and "P", whose pixels are chosen and not mixed.

    Raises:
        DecompressionBombError: a side would be longer than `MOST_PIXELS`.
    """
    if max(vertical.want, horizontal.want) > MOST_PIXELS:
        raise Image.DecompressionBombError(
            f"its {image.width} x {image.height} pixels would become {horizontal.want} x {vertical.want} before the "
            "crop; send it less elongated"
        )
    if image.mode in _NEAREST:
        return _chosen(image, vertical, horizontal)
    mode = _WEIGHTED.get(image.mode, image.mode)
    converted = image if mode == image.mode else image.convert(mode)
    pixels = np.asarray(converted).reshape(image.height, image.width, -1)
    if pixels.dtype.itemsize == 2:
        # Pillow takes the bytes of "I;16B" too for those of little-endian numbers.
        pixels = pixels.view("<u2")
    if mode == "LAB":
        window = resample_window(pixels ^ _OFFSET, vertical, horizontal, interpolation) ^ _OFFSET
    else:
        window = resample_window(pixels, vertical, horizontal, interpolation)
    result = Image.frombytes(mode, (horizontal.length, vertical.length), window.tobytes())
    if mode == "PA":
        result.putpalette(converted.getpalette() or b"")
    return result if image.mode == mode else result.convert(image.mode)


def _chosen(image: Image.Image, vertical: Axis, horizontal: Axis) -> Image.Image:
    rows, columns = nearest(vertical), nearest(horizontal)
    top, left = int(rows[0]), int(columns[0])
    # Cut out first: colours of four bytes for each pixel of the whole are not needed.
    part = image.crop((left, top, int(columns[-1]) + 1, int(rows[-1]) + 1))
    pixels = np.asarray(part.convert("RGB"))
    return Image.fromarray(pixels[np.ix_(rows - top, columns - left)])
