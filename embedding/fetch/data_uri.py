"""Decodes base64 data URIs, items that contain their own bytes. Source: docs/protocol.md, section 3.4."""

from __future__ import annotations

import base64
import binascii

from embedding.errors import MediaError
from embedding.shown import shown

_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))
_MAX_STRAY_PADDING = 100

DATA_URI_PREFIX = "data:image/"
"""The start of each item that is a data URI."""


def decode_data_uri(item: str, max_bytes: int) -> bytes:
    """Decodes what follows the first `base64,` of a data URI.

    As the protocol requires, characters outside of the base64 alphabet are skipped.

    Args:
        item: the data URI.
        max_bytes: maximum size once decoded.

    Raises:
        MediaError: no `base64,`, not ASCII, wrong padding, or more than `max_bytes` once decoded.
    """
    _, separator, payload = item.partition("base64,")
    if not separator:
        raise MediaError(
            f"cannot identify image file `{_head(item)}`: its data uri holds no `base64,`; "
            "send it as `data:image/png;base64,` and the picture in base64"
        )
    # Skipped characters such as line breaks make the text longer than 4/3 of the bytes; twice as long is the limit.
    if len(payload) > 2 * max_bytes:
        raise MediaError(f"the data uri `{_head(item)}` has more than the {max_bytes} bytes that are allowed")
    try:
        data = base64.b64decode(_until_padding(payload))
    except (ValueError, binascii.Error) as error:
        raise MediaError(f"Invalid base64 data in the data uri `{_head(item)}`: {error}") from error
    if len(data) > max_bytes:
        raise MediaError(f"the data uri `{_head(item)}` has more than the {max_bytes} bytes that are allowed")
    return data


def _until_padding(payload: str) -> bytes:
    """The base64 characters up to the padding that ends the data. What follows is ignored.

    Python ignores it itself before 3.14, as Marqo's does; later releases decode it too. A `=` where no padding can be
    is skipped by all of them.

    Raises:
        ValueError: not ASCII, or more stray `=` than any encoder writes.
    """
    if not payload.isascii():
        raise ValueError("string argument should contain only ASCII characters")
    text = payload.encode().translate(None, _NOT_BASE64)
    at = text.find(b"=")
    for stray in range(_MAX_STRAY_PADDING):
        if at < 0:
            return text
        missing = 4 - (at - stray) % 4
        if missing <= 2 and text[at : at + missing] == b"=" * missing:
            return text[: at + missing]
        at = text.find(b"=", at + 1)
    raise ValueError("Incorrect padding")


def _head(item: str) -> str:
    return shown(item[:40]) + ("…" if len(item) > 40 else "")
