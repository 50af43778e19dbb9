"""Why a picture has no vector, in words. Every name is one that is fit for a message (see `shown.shown`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from embedding.errors import SlowError
from embedding.image.signature import foreign, missing_bytes, sniffed
from embedding.shown import shown

if TYPE_CHECKING:
    from embedding.image.pixels import ImageLimits

# As Pillow's decoders call it.
_TRUNCATED = re.compile(r"truncated|reached EOF|not enough image data|but only got", re.IGNORECASE)


def too_slow(name: str, limits: ImageLimits) -> SlowError:
    """The error of a picture that has used up its time."""
    return SlowError(
        f"image `{name}` takes more than {limits.max_decode_s:g} s of CPU to decode, which is the most that a picture "
        "may take here (preprocessor.max_decode_s); send it smaller, or as a plain JPEG or PNG"
    )


def too_hungry(name: str) -> str:
    """What is said of a picture that needs more memory than `ImageLimits.max_bytes`."""
    return (
        f"image `{name}` takes more memory to decode than a picture may take here (preprocessor.max_pixels); "
        "send it smaller, or as a plain JPEG or PNG"
    )


def reason(error: Exception, data: bytes, name: str) -> str:
    """What is said of a picture for which Pillow raised `error`: in Marqo's words where it has some (docs/protocol.md,
    section 3.4), and what the bytes were."""
    text, data = shown(str(error)), bytes(data)
    if isinstance(error, Image.DecompressionBombError):
        return f"image `{name}` is too large: {text}"
    if isinstance(error, MemoryError):
        return too_hungry(name)
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify image file `{name}`: {sniffed(data)}"
    if found := foreign(data):
        return f"cannot identify image file `{name}`: {found}"
    missing = missing_bytes(data)
    lacking = f"; it is truncated, at least {missing} bytes are missing" if missing else ""
    if _TRUNCATED.search(text):
        return f"Image file is truncated: `{name}`: {text}{lacking}"
    return f"image `{name}` could not be decoded properly: {type(error).__name__}: {text}{lacking}"
