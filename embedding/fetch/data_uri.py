"""Contents that bring their bytes along: base64 data URIs. Source: docs/protocol.md, section 3.4."""

from __future__ import annotations

import base64
import binascii

from embedding.errors import MediaError
from embedding.shown import shown

DATA_URI = "data:image/"
"""How they begin."""


def decode_data_uri(content: str, max_bytes: int) -> bytes:
    """The payload of a base64 data URI: what follows the first `base64,`.

    Lenient, as the protocol wants it: characters outside the alphabet are skipped.

    Raises:
        MediaError: not base64 at all, not ASCII, wrongly padded, or more than `max_bytes` once decoded.
    """
    _, mark, payload = content.partition("base64,")
    if not mark:
        raise MediaError(
            f"cannot identify image file `{_head(content)}`: its data uri holds no `base64,`; "
            "send it as `data:image/png;base64,` and the picture in base64"
        )
    # Line breaks and the like may make the text longer than 4/3 of the bytes, but not without bound.
    if len(payload) > 2 * max_bytes:
        raise MediaError(f"the data uri `{_head(content)}` has more than the {max_bytes} bytes that are allowed")
    try:
        data = base64.b64decode(payload)
    except (ValueError, binascii.Error) as error:
        raise MediaError(f"Invalid base64 data in the data uri `{_head(content)}`: {error}") from error
    if len(data) > max_bytes:
        raise MediaError(f"the data uri `{_head(content)}` has more than the {max_bytes} bytes that are allowed")
    return data


def _head(content: str) -> str:
    return shown(content[:40]) + ("…" if len(content) > 40 else "")
