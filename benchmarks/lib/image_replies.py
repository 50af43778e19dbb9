"""The replies of the image host (`image_host.py`) as bytes, heads included: well-formed, loose and broken ones."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache

SMALL_BODY = b"0123456789"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSING = frozenset(("once", "close", "cut", "cut-chunked", "garbage", "huge-headers", "many-headers"))
"""After these replies the connection is closed."""


def reply_to(files: Mapping[str, bytes], what: str, name: str, query: Mapping[str, str]) -> bytes:
    """The reply to a request for `/what/name?query`.

    Raises:
        KeyError: there is no such file, or the query lacks something.
    """
    match what:
        case "ok" | "once":
            return file_reply(files, name)
        case "chunked":
            return CHUNKED + chunk(files[name]) + chunk(b"")
        case "close":
            return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + files[name]
        case "loose":
            kind, _, name = name.partition("/")
            return _loose(kind, files[name])
        case "status":
            return _reply(b"", name)
        case "redirect":
            count = int(name)
            return _redirect(f"/redirect/{count - 1}") if count else _reply(SMALL_BODY)
        case "redirect-to":
            return _redirect(query["url"], query.get("code", "302"))
    return _odd(what)


def _loose(kind: str, body: bytes) -> bytes:
    """Replies that are unusual or not strictly HTTP, and that browsers and libcurl understand all the same."""
    length = f"Content-Length: {len(body)}".encode()
    ok = b"HTTP/1.1 200 OK\r\n"
    match kind:
        case "excess":
            return ok + length + b"\r\n\r\n" + body + b"\r\nmore"
        case "chunked-length":
            return ok + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(body) + chunk(b"")
        case "equal-lengths":
            return ok + length + b"\r\n" + length + b"\r\n\r\n" + body
        case "blank-colon":
            return ok + b"X-A : a\r\nX-B\t: b\r\n" + length + b"\r\n\r\n" + body
        case "200-headers":
            return ok + b"".join(b"X-%d: a\r\n" % i for i in range(200)) + length + b"\r\n\r\n" + body
        case "long-header":
            return ok + b"X-Long: " + b"a" * 60_000 + b"\r\n" + length + b"\r\n\r\n" + body
        case "interim":
            return b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _reply(body)
        case "trailers":
            return CHUNKED + chunk(body) + b"0\r\nX-After: a\r\nContent-Length: 1\r\n\r\n"
        case "line-feeds":
            return ok.replace(b"\r", b"") + length + b"\n\n" + body
        case "no-reason":
            return b"HTTP/1.1 200\r\n" + length + b"\r\n\r\n" + body
    return _reply(b"", "404")


def _odd(what: str) -> bytes:
    """Replies that are always the same; 404 for all others."""
    match what:
        case "location-missing":
            return _reply(b"", "302")
        case "html":
            return _reply(b"<!doctype html><title>not a picture</title>", extra="Content-Type: text/html")
        case "empty":
            return _reply(b"")
        case "cookie":
            return _reply(SMALL_BODY, extra="Set-Cookie: session=1; Path=/")
        case "cut":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + SMALL_BODY
        case "cut-chunked":
            return CHUNKED + chunk(SMALL_BODY)
        case "lie-short":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + SMALL_BODY
        case "bad-chunk":
            return CHUNKED + b"zz\r\nab\r\n"
        case "garbage":
            return b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
        case "huge-headers":
            return _reply(SMALL_BODY, extra="X-Huge: " + "a" * 2**20)
        case "many-headers":
            return _reply(SMALL_BODY, extra=_MANY_HEADERS)
        case "gzip-bomb":
            return _reply(_gzip_bomb(), extra="Content-Encoding: gzip")
    return _reply(b"", "404")


_MANY_HEADERS = "\r\n".join(f"X-{i}: a" for i in range(100_000))


def parsed_headers(fields: list[str]) -> dict[str, str]:
    """Headers of a request by their lower-case names; repeated ones are joined with a comma."""
    headers: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        name = name.lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return headers


def _reply(body: bytes, status: str = "200", extra: str = "") -> bytes:
    fields = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}", extra]
    return "\r\n".join(filter(None, fields)).encode("utf-8") + b"\r\n\r\n" + body


def padded(reply: bytes, nbytes: int) -> bytes:
    """The reply with a header that makes it so long."""
    status, _, rest = reply.partition(b"\r\n")
    start = status + b"\r\nX-Padding: "
    return start + bytes(nbytes - len(start) - 2 - len(rest)).replace(b"\0", b"x") + b"\r\n" + rest


def file_reply(files: Mapping[str, bytes], name: str) -> bytes:
    """A reply with a file; 404 if there is none of that name."""
    body = files.get(name)
    return _reply(b"", "404") if body is None else _reply(body)


def _redirect(location: str, status: str = "302") -> bytes:
    return _reply(b"", status, f"Location: {location}")


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; the last one is empty."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(10 * 2**20)) * 10
