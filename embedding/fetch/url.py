"""Parses items as URLs: decides which strings are URLs, quotes them, and resolves redirects.

Input: an item, or the Location header of a redirect. Output: a `Target` to request.

Source: docs/protocol.md, sections 4.1 and 4.2.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote, unquote_to_bytes

import validators
from requests.utils import requote_uri
from yarl import URL

from embedding.errors import ErrorKind, MediaError
from embedding.fetch.guard import DestinationRefused
from embedding.shown import shown

MAX_URL_CHARS = 16_384
"""Longer strings are not accepted as URLs: no server accepts them, and the checks take time."""

# URLs whose path and query contain only harmless characters, so that only scheme and host must be validated.
_PLAIN_URL = re.compile(
    r"(https?://[^/?#@\s]+)(?:/[-a-zA-Z0-9._~!$&'()*+,;=:@%/]*)?(?:\?[-a-zA-Z0-9._~!$&'()*+,;=:@%/?]*)?"
)
_HOST = re.compile(r"[a-z0-9_.-]+")
_RAW_BYTE = re.compile("[\udc80-\udcff]")
_SENT = re.compile("[!-~]+")
# RFC 3986, appendix B: scheme, authority, path and query, with their delimiters.
_PARTS = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(//[^/?#]*)?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Target:
    """The destination of one hop of a download.

    Args:
        url: the quoted URL, with a lower-case ASCII host and without user information.
        origin: scheme, host and port, which are checked by the guard and connected to, and to which credentials belong.
        path: path and query as they are sent: ASCII without spaces. A trailing `?` is kept here, but not in `url`.
        authorization: value of the Authorization header, from the user information of the URL; None without.
    """

    url: URL
    origin: tuple[str, str, int]
    path: str
    authorization: str | None


def parse_url(item: str) -> Target:
    """The target of an item.

    Raises:
        MediaError: the item is not a URL, cannot be encoded, or cannot be fetched over HTTP.
    """
    quoted = _quoted_if_valid(item)
    if quoted is None:
        raise MediaError(
            f"`{shown(item)}` is not a local file, a valid url, or a base64-encoded image", ErrorKind.BAD_URL
        )
    try:
        return make_target(quoted)
    except DestinationRefused as error:
        raise MediaError(f"media url `{shown(item)}` was refused: {error}", ErrorKind.BAD_URL) from error


def parse_redirect(base: URL, location: str) -> Target:
    """The target of a redirect.

    Args:
        base: the URL that answered with the redirect.
        location: its Location header, which may be relative to `base`.

    Raises:
        DestinationRefused: the location is not an HTTP URL.
    """
    # Bytes that are not UTF-8 are lone surrogates in `location`; they are percent-encoded.
    location = _RAW_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", location)
    try:
        return make_target(requote_uri(_resolved(base, location.strip())))
    except ValueError as error:
        raise DestinationRefused("it redirects to something that is not a url") from error


def make_target(quoted: str) -> Target:
    """The target of a quoted URL.

    Raises:
        DestinationRefused: the scheme is not http or https, or host or port is missing or invalid.
    """
    try:
        url = URL(quoted, encoded=True)
        scheme = url.scheme
        if scheme not in ("http", "https"):
            raise DestinationRefused(
                f"media is downloaded over http and https only, and the scheme is `{scheme or '<none>'}`"
            )
        host, port = url.raw_host, url.port
        if not host or not port:
            raise DestinationRefused("it has no host" if not host else "its port is invalid")
        authorization = None
        if url.raw_user is not None or url.raw_password is not None:
            authorization = _basic(url.raw_user or "", url.raw_password or "")
        if ":" not in host and not _HOST.fullmatch(host):
            host = url.with_host(unquote(host).lower()).raw_host or ""  # to IDNA
            if not _HOST.fullmatch(host):
                raise DestinationRefused("its host is invalid")
    except ValueError as error:  # yarl on ports and hosts
        raise DestinationRefused("its host or port is invalid") from error
    path, question_mark, query = _path_and_query(quoted)
    if not _SENT.fullmatch(path + question_mark + query):
        raise DestinationRefused("its path is invalid")
    # The URL is built from its parts, so that a path which begins with two slashes remains a path.
    authority = f"[{host}]" if ":" in host else host
    if url.explicit_port is not None:
        authority += f":{url.explicit_port}"
    url = URL(f"{scheme}://{authority}{path}{question_mark}{query}", encoded=True)
    return Target(url, (scheme, host, port), path + question_mark + query, authorization)


def _quoted_if_valid(item: str) -> str | None:
    if len(item) > MAX_URL_CHARS:
        return None
    valid = _is_url(item)
    try:
        quoted = requote_uri(item)
    except UnicodeError as error:
        if not valid:
            return None
        raise MediaError(f"media url `{shown(item)}` could not be encoded", ErrorKind.BAD_URL) from error
    return quoted if valid or _is_url(quoted) else None


def _is_url(text: str) -> bool:
    plain = _PLAIN_URL.fullmatch(text)
    return _validate(text) if plain is None else _validate_authority(plain[1])


@lru_cache(4096)
def _validate_authority(url: str) -> bool:
    """`_validate` for scheme and host only, cached, because it takes up to 60 µs and many URLs have the same host."""
    return _validate(url)


def _validate(text: str) -> bool:
    # A query need not consist of pairs (`a.jpg?123` is commonly used to bypass caches): the release of `validators`
    # that Marqo's native server used accepts such URLs.
    return validators.url(text, strict_query=False) is True


def _basic(user: str, password: str) -> str:
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return "Basic " + base64.b64encode(pair).decode("ascii")


def _path_and_query(url: str) -> tuple[str, str, str]:
    """Path without dot segments, `?` or "", and query of an absolute URL; the fragment is removed."""
    _, _, path, query = _parts(url)
    return _without_dot_segments(path) or "/", query[:1], query[1:]


def _resolved(base: URL, reference: str) -> str:
    """Resolves a reference as in RFC 3986, section 5.2.2. `base` has no user information."""
    scheme, authority, path, query = _parts(reference)
    if scheme:
        return reference
    if authority:
        return f"{base.scheme}:{reference}"
    if not path:
        path, query = base.raw_path, query or f"?{base.raw_query_string}" if base.raw_query_string else query
    elif not path.startswith("/"):
        path = base.raw_path.rpartition("/")[0] + "/" + path
    return f"{base.scheme}://{base.raw_authority}{path}{query}"


def _parts(url: str) -> tuple[str, str, str, str]:
    """Scheme, authority with its slashes, path, and query with its `?`; each may be empty."""
    matched = _PARTS.fullmatch(url)
    assert matched is not None  # it matches any text
    return matched[1] or "", matched[2] or "", matched[3], matched[4] or ""


def _without_dot_segments(path: str) -> str:
    """Removes dot segments as in RFC 3986, section 5.2.4, and as libcurl does, since some servers refuse a path with
    `..` in it. Empty segments are kept."""
    if "/." not in path:
        return path
    kept: list[str] = []
    *segments, last = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if last == "..":
        kept = kept[:-1]
    return "/".join(["", *kept, "" if last in (".", "..") else last])
