"""Decodes base64 data URIs, items that contain their own bytes. Source: docs/protocol.md, section 3.4."""

from __future__ import annotations

import base64

from embedding.errors import ErrorKind, MediaError
from embedding.shown import shown

_BASE64 = "base64,"
_NOT_BASE64 = bytes(set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="))
_MAX_STRAY_PADDING = 100
# Characters that are decoded at a time, a multiple of 4. The functions used hold Python's lock until they return: about
# a millisecond for this many, but half a second for a URI of 64 MiB, in which no other thread could run.
_PIECE = 128 * 2**10

DATA_URI_PREFIX = "data:image/"
"""The start of each item that is a data URI."""


def max_decoded_bytes(item: str, max_bytes: int) -> int:
    """An upper bound of the bytes that `decode_data_uri` returns for the same arguments."""
    return min(len(item) * 3 // 4, max_bytes)


def decode_data_uri(item: str, max_bytes: int) -> bytes:
    """Decodes what follows the first `base64,` of a data URI.

    As the protocol requires, characters outside of the base64 alphabet are skipped. Works in pieces, so that other
    threads can run in between; of 64 MiB only some copies take longer, about 30 ms.

    Args:
        item: the data URI.
        max_bytes: maximum size once decoded.

    Raises:
        MediaError: no `base64,`, not ASCII, wrong padding, or more than `max_bytes` once decoded.
    """
    start = item.find(_BASE64)
    if start < 0:
        raise MediaError(
            f"cannot identify image file `{head(item)}`: its data uri holds no `base64,`; "
            "send it as `data:image/png;base64,` and the picture in base64",
            ErrorKind.BAD_URL,
        )
    start += len(_BASE64)
    # Skipped characters such as line breaks make the text longer than 4/3 of the bytes; twice as long is the limit.
    if len(item) - start > 2 * max_bytes:
        raise _too_large(item, max_bytes)
    try:
        text = _until_padding(_base64_characters(item, start))
        if len(text) % 4:
            raise ValueError("Incorrect padding")
        data = b"".join(base64.b64decode(text[at : at + _PIECE]) for at in range(0, len(text), _PIECE))
    except ValueError as error:
        raise MediaError(f"Invalid base64 data in the data uri `{head(item)}`: {error}", ErrorKind.BAD_URL) from error
    if len(data) > max_bytes:
        raise _too_large(item, max_bytes)
    return data


def _base64_characters(item: str, start: int) -> bytearray:
    """The characters of the base64 alphabet from `start` on, `=` included.

    Raises:
        ValueError: not ASCII.
    """
    text = bytearray()
    for at in range(start, len(item), _PIECE):
        piece = item[at : at + _PIECE]
        if not piece.isascii():
            raise ValueError("string argument should contain only ASCII characters")
        text += piece.encode().translate(None, _NOT_BASE64)
    return text


def _until_padding(text: bytearray) -> bytearray:
    """The characters up to the padding that ends the data, without any `=` before it. What follows is ignored.

    Python's decoder ignores it itself before 3.14, as Marqo's does; later releases decode it too. All of them skip a
    `=` where no padding can be; here it is removed, so that the text can be decoded in pieces of four characters each.

    Raises:
        ValueError: more stray `=` than any encoder writes.
    """
    at = text.find(b"=")
    for stray in range(_MAX_STRAY_PADDING):
        if at < 0:
            return text.replace(b"=", b"") if stray else text
        missing = 4 - (at - stray) % 4
        if missing <= 2 and text[at : at + missing] == b"=" * missing:
            del text[at + missing :]
            return text[:at].replace(b"=", b"") + b"=" * missing if stray else text
        at = text.find(b"=", at + 1)
    raise ValueError("Incorrect padding")


def _too_large(item: str, max_bytes: int) -> MediaError:
    message = f"the data uri `{head(item)}` has more than the {max_bytes} bytes that are allowed"
    return MediaError(message, ErrorKind.TOO_LARGE)


def head(item: str) -> str:
    """The start of a data URI, as errors show it."""
    return shown(item[:40]) + ("…" if len(item) > 40 else "")
