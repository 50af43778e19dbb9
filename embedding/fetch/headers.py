"""The request headers of a download: the default ones, those of the client, and which of them are kept on a redirect.

Source: docs/protocol.md, section 4.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from multidict import CIMultiDict

from embedding.fetch.url import Target
from embedding.shown import shown

USER_AGENT = "Marqobot/1.0"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*")
# Headers that govern the connection, which later requests share, so a client cannot set them. With a Content-Length on
# a GET, for example, the server would read the start of the next request as a body.
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
# Headers that are meant for one host only.
_BOUND_HEADERS = ("Authorization", "Proxy-Authorization", "Cookie", "Host")
_DEFAULT_HEADERS = CIMultiDict({"User-Agent": USER_AGENT})


class BadHeaders(Exception):
    """A client's headers cannot be sent; the text completes "error when downloading the media url X: "."""


def request_headers(extra: Mapping[str, str] | None, max_bytes: int) -> CIMultiDict[str]:
    """The headers of the first request: the default ones, with `extra` merged over them.

    A key replaces a default header only if its case is the same; otherwise both are sent (docs/protocol.md,
    section 4.3). Headers that govern the connection are left out.

    Args:
        extra: headers of the client, by name.
        max_bytes: maximum size of them together.

    Raises:
        BadHeaders: a header is malformed, or together they exceed `max_bytes`. The message does not repeat values.
    """
    if not extra:
        return _DEFAULT_HEADERS
    if sum(len(name) + len(value) + 4 for name, value in extra.items()) > max_bytes:
        raise BadHeaders(f"the download headers have more than the {max_bytes} bytes that are allowed")
    headers = CIMultiDict[str]()
    for name, value in {"User-Agent": USER_AGENT, **extra}.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise BadHeaders(f"the download header `{shown(name)!r}` is malformed")
        if name.lower() not in _CONNECTION_HEADERS:
            headers.add(name, value)
    return headers


def headers_after_redirect(headers: CIMultiDict[str], old: Target, new: Target) -> CIMultiDict[str]:
    """The headers of the request that follows a redirect.

    Headers with credentials are kept only if scheme, host and port stay the same, or if the same host is redirected
    from http to https on their default ports.
    """
    upgrade = (old.origin[0], old.origin[2], new.origin[0], new.origin[2]) == ("http", 80, "https", 443)
    if new.origin == old.origin or (upgrade and new.origin[1] == old.origin[1]):
        return headers
    kept = headers.copy()
    for name in _BOUND_HEADERS:
        kept.popall(name, None)
    return kept
