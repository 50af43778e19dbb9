"""Error messages for pictures that cannot be decoded.

Each `name` must have passed `embedding.shown.shown` already.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from embedding.errors import ErrorKind, MediaError, SlowError
from embedding.image.signature import missing_bytes, sniff, unsupported_format
from embedding.shown import shown

if TYPE_CHECKING:
    from embedding.image.pixels import ImageLimits

# How Pillow's decoders report a truncated file.
_TRUNCATED = re.compile(r"truncated|reached EOF|not enough image data|but only got", re.IGNORECASE)


def too_slow(name: str, limits: ImageLimits) -> SlowError:
    """The error of a picture that has reached `limits.max_decode_s`."""
    return SlowError(
        f"image `{name}` takes more than {limits.max_decode_s:g} s of CPU to decode, which is the most that a picture "
        "may take here (preprocessor.max_decode_s); send it smaller, or as a plain JPEG or PNG"
    )


def too_much_memory(name: str) -> MediaError:
    """The error of a picture that needs more memory than `ImageLimits.max_bytes`."""
    return MediaError(
        f"image `{name}` takes more memory to decode than a picture may take here (preprocessor.max_pixels); "
        "send it smaller, or as a plain JPEG or PNG",
        ErrorKind.TOO_LARGE,
    )


def refused(error: Exception, data: bytes, name: str) -> MediaError:
    """The error of a picture for which Pillow raised `error`: in Marqo's wording where there is one
    (docs/protocol.md, section 3.4), with what kind of file the bytes are."""
    text, data = shown(str(error)), bytes(data)
    if isinstance(error, Image.DecompressionBombError):
        return MediaError(f"image `{name}` is too large: {text}", ErrorKind.TOO_LARGE)
    if isinstance(error, MemoryError):
        return too_much_memory(name)
    if isinstance(error, UnidentifiedImageError):
        return MediaError(f"cannot identify image file `{name}`: {sniff(data)}", ErrorKind.NOT_A_PICTURE)
    if kind := unsupported_format(data):
        return MediaError(f"cannot identify image file `{name}`: {kind}", ErrorKind.NOT_A_PICTURE)
    missing = missing_bytes(data)
    truncation = f"; it is truncated, at least {missing} bytes are missing" if missing else ""
    if _TRUNCATED.search(text):
        return MediaError(f"Image file is truncated: `{name}`: {text}{truncation}", ErrorKind.DAMAGED)
    return MediaError(
        f"image `{name}` could not be decoded properly: {type(error).__name__}: {text}{truncation}", ErrorKind.DAMAGED
    )
