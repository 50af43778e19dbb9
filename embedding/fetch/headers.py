"""The headers of a download: ours and the caller's, and what remains of them on another host.

Source: docs/protocol.md, section 4.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from multidict import CIMultiDict

from embedding.fetch.url import Target
from embedding.shown import shown

_USER_AGENT = "Marqobot/1.0"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
# Ours to decide, as they frame the messages on a connection that later requests share: with a Content-Length
# on a GET the server would swallow the start of the next request.
_CONNECTION_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# For the eyes of one host only.
_BOUND_HEADERS = ("Authorization", "Proxy-Authorization", "Cookie", "Host")
_DEFAULT_HEADERS = CIMultiDict({"User-Agent": _USER_AGENT})


class BadHeaders(Exception):
    """A caller's headers cannot be sent; the text completes "error when downloading the media url X: "."""


def request_headers(extra: Mapping[str, str] | None, max_bytes: int) -> CIMultiDict[str]:
    """The headers of the first request: ours, with `extra` merged over them.

    A key replaces ours only if its case is the same; any other is sent as well (docs/protocol.md, section 4.3).
    Headers that govern the connection are left out.

    Raises:
        BadHeaders: a header is malformed, or together they exceed `max_bytes`. Values are not repeated.
    """
    if not extra:
        return _DEFAULT_HEADERS
    if sum(len(name) + len(value) + 4 for name, value in extra.items()) > max_bytes:
        raise BadHeaders(f"the download headers have more than the {max_bytes} bytes that are allowed")
    headers = CIMultiDict[str]()
    for name, value in {"User-Agent": _USER_AGENT, **extra}.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise BadHeaders(f"the download header `{shown(name)!r}` is malformed")
        if name.lower() not in _CONNECTION_HEADERS:
            headers.add(next((known for known in headers if known.lower() == name.lower()), name), value)
    return headers


def headers_after_redirect(headers: CIMultiDict[str], old: Target, new: Target) -> CIMultiDict[str]:
    """Credentials stay with their scheme, host and port, or follow the host from http to https."""
    upgrade = (old.origin[0], old.origin[2], new.origin[0], new.origin[2]) == ("http", 80, "https", 443)
    if new.origin == old.origin or (upgrade and new.origin[1] == old.origin[1]):
        return headers
    kept = headers.copy()
    for name in _BOUND_HEADERS:
        kept.popall(name, None)
    return kept
