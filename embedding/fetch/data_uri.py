"""Decodes base64 data URIs, items that contain their own bytes. Source: docs/protocol.md, section 3.4."""

from __future__ import annotations

import base64
import binascii

from embedding.errors import MediaError
from embedding.shown import shown

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
        data = base64.b64decode(payload)
    except (ValueError, binascii.Error) as error:
        raise MediaError(f"Invalid base64 data in the data uri `{_head(item)}`: {error}") from error
    if len(data) > max_bytes:
        raise MediaError(f"the data uri `{_head(item)}` has more than the {max_bytes} bytes that are allowed")
    return data


def _head(item: str) -> str:
    return shown(item[:40]) + ("…" if len(item) > 40 else "")
