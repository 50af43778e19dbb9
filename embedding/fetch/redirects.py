"""Redirects of a download, followed one by one: each destination is checked by the transport before it is asked.

Source: docs/protocol.md, section 4.3.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from multidict import CIMultiDict

from embedding.fetch.headers import headers_after_redirect
from embedding.fetch.reply import Reply
from embedding.fetch.url import Target, parse_redirect

_REDIRECTS = frozenset((301, 302, 303, 307, 308))

Hop = Callable[[Target, CIMultiDict[str], bool], Awaitable[Reply]]
"""One request: its target, its headers, and whether it follows a redirect."""


class RedirectError(Exception):
    """A chain of redirects was not followed to its end; the text is the reason."""


async def follow(
    target: Target, headers: CIMultiDict[str], hop: Hop, max_redirects: int, allow_downgrade: bool
) -> Reply:
    """The first answer that is no redirect.

    Args:
        target: the first destination.
        headers: of the first request. Credentials among them stay with their host.
        hop: makes one request.
        max_redirects: that are followed.
        allow_downgrade: whether https may lead to http.

    Raises:
        RedirectError: too many redirects, or one from https to http.
        DestinationRefused: the Location of a redirect is no http(s) URL.
        Whatever `hop` raises.
    """
    for followed in range(max_redirects + 1):
        reply = await hop(target, headers, followed > 0)
        if reply.location is None or reply.status not in _REDIRECTS:
            return reply
        following = parse_redirect(target.url, reply.location)
        if not allow_downgrade and (target.origin[0], following.origin[0]) == ("https", "http"):
            raise RedirectError("it redirects from https to http")
        headers = headers_after_redirect(headers, target, following)
        target = following
    raise RedirectError(f"more than {max_redirects} redirects")
