"""Contents as addresses: which strings are URLs, and how they are quoted.

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

from embedding.errors import MediaError
from embedding.fetch.guard import Refused
from embedding.shown import shown

MAX_URL_CHARS = 16_384
"""Longer strings are no URLs for us: no server accepts them, and the checks cost time."""

# URLs whose path and query hold nothing that could be wrong, so that scheme and host decide.
_PLAIN_URL = re.compile(
    r"(https?://[^/?#@\s]+)(?:/[-a-zA-Z0-9._~!$&'()*+,;=:@%/]*)?(?:\?[-a-zA-Z0-9._~!$&'()*+,;=:@%/?]*)?"
)
_HOST = re.compile(r"[a-z0-9_.-]+")
_RAW_BYTE = re.compile("[\udc80-\udcff]")
_SENT = re.compile("[!-~]+")
# RFC 3986, appendix B: scheme, authority, path and query, with their marks.
_PARTS = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(//[^/?#]*)?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Target:
    """One hop of a download, ready to be requested.

    Args:
        url: quoted, with a lower-case ASCII host and without user information.
        origin: scheme, host and port: what is checked and connected to, and what credentials are bound to.
        path: path and query as they are sent, ASCII without blanks; a last `?` is kept, which `url` has lost.
        authorization: value of the Authorization header if the URL has user information.
    """

    url: URL
    origin: tuple[str, str, int]
    path: str
    authorization: str | None


def parse_url(content: str) -> Target:
    """The target that a content names.

    Raises:
        MediaError: it is no URL, cannot be encoded, or cannot be fetched over HTTP.
    """
    quoted = _quoted_if_valid(content)
    if quoted is None:
        raise MediaError(f"`{shown(content)}` is not a local file, a valid url, or a base64-encoded image")
    try:
        return make_target(quoted)
    except Refused as error:
        raise MediaError(f"media url `{shown(content)}` was refused: {error}") from error


def parse_redirect(base: URL, location: str) -> Target:
    """The target that a redirect's Location header names, relative to the URL that answered.

    Raises:
        Refused: it is no HTTP URL.
    """
    # Bytes that are no UTF-8 arrive as lone surrogates: back to bytes, percent-encoded.
    location = _RAW_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", location)
    try:
        return make_target(requote_uri(_resolved(base, location.strip())))
    except ValueError as error:
        raise Refused("it redirects to something that is not a url") from error


def make_target(quoted: str) -> Target:
    """The target of a quoted URL.

    Raises:
        Refused: the scheme is not http or https, or host or port is missing or invalid.
    """
    try:
        url = URL(quoted, encoded=True)
        scheme = url.scheme
        if scheme not in ("http", "https"):
            raise Refused(f"media is downloaded over http and https only, and the scheme is `{scheme or '<none>'}`")
        host, port = url.raw_host, url.port
        if not host or not port:
            raise Refused("it has no host" if not host else "its port is invalid")
        authorization = None
        if url.raw_user is not None or url.raw_password is not None:
            authorization = _basic(url.raw_user or "", url.raw_password or "")
        if ":" not in host and not _HOST.fullmatch(host):
            host = url.with_host(unquote(host).lower()).raw_host or ""  # to IDNA
            if not _HOST.fullmatch(host):
                raise Refused("its host is invalid")
    except ValueError as error:  # yarl on ports and hosts
        raise Refused("its host or port is invalid") from error
    path, mark, query = _path_and_query(quoted)
    if not _SENT.fullmatch(path + mark + query):
        raise Refused("its path is invalid")
    # Put together once, each part in its place: a path that begins with two slashes stays a path.
    authority = f"[{host}]" if ":" in host else host
    if url.explicit_port is not None:
        authority += f":{url.explicit_port}"
    url = URL(f"{scheme}://{authority}{path}{mark}{query}", encoded=True)
    return Target(url, (scheme, host, port), path + mark + query, authorization)


def _quoted_if_valid(content: str) -> str | None:
    if len(content) > MAX_URL_CHARS:
        return None
    valid = _is_url(content)
    try:
        quoted = requote_uri(content)
    except UnicodeError as error:
        if not valid:
            return None
        raise MediaError(f"media url `{shown(content)}` could not be encoded") from error
    return quoted if valid or _is_url(quoted) else None


def _is_url(text: str) -> bool:
    plain = _PLAIN_URL.fullmatch(text)
    return _validate(text) if plain is None else _validate_authority(plain[1])


@lru_cache(4096)
def _validate_authority(url: str) -> bool:
    """`_validate` for scheme and host alone: it costs up to 60 µs, and many URLs share a host."""
    return _validate(url)


def _validate(text: str) -> bool:
    # A query need not be made of pairs (`a.jpg?123` is a common way past caches): the release that the native
    # server used takes such URLs, and a vector for one is right whichever server is imitated.
    return validators.url(text, strict_query=False) is True


def _basic(user: str, password: str) -> str:
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return "Basic " + base64.b64encode(pair).decode("ascii")


def _path_and_query(url: str) -> tuple[str, str, str]:
    """Path without dot segments, `?` or "", and query of an absolute URL; the fragment is left out."""
    _, _, path, query = _parts(url)
    return _without_dot_segments(path) or "/", query[:1], query[1:]


def _resolved(base: URL, reference: str) -> str:
    """A reference as RFC 3986, section 5.2.2, resolves it. `base` has no user information."""
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
    """Scheme, authority with its slashes, path, and query with its mark; each may be empty."""
    found = _PARTS.fullmatch(url)
    assert found is not None  # it matches any text
    return found[1] or "", found[2] or "", found[3], found[4] or ""


def _without_dot_segments(path: str) -> str:
    """RFC 3986, section 5.2.4, as libcurl does it; some servers refuse a path with `..` in it. Empty segments stay."""
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
