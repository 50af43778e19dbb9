"""Easy handles of libcurl: the options that all requests share, and those of one request."""

from __future__ import annotations

from typing import Any

import pycurl
from multidict import CIMultiDict

from embedding.fetch.url import Target

# One buffer serves all transfers of a pool.
_BUFFER_BYTES = 64 * 2**10


def new_easy(ca_file: str, keepalive_s: float) -> Any:
    """An easy handle with the options that all requests share."""
    easy = pycurl.Curl()
    for option, value in (
        (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
        (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
        (pycurl.HTTP09_ALLOWED, False),
        (pycurl.PROXY, ""),
        (pycurl.NOPROXY, "*"),
        (pycurl.NETRC, pycurl.NETRC_IGNORED),
        (pycurl.FOLLOWLOCATION, False),
        (pycurl.NOSIGNAL, True),
        (pycurl.USERAGENT, ""),  # pycurl has one of its own; ours is among the headers
        (pycurl.CAINFO, ca_file),
        (pycurl.MAXAGE_CONN, max(1, round(keepalive_s))),
        (pycurl.DNS_CACHE_TIMEOUT, 60),
        (pycurl.BUFFERSIZE, _BUFFER_BYTES),
    ):
        easy.setopt(option, value)
    return easy


def configure(easy: Any, target: Target, addresses: list[str], headers: CIMultiDict[str]) -> None:
    """Sets the options of one GET request.

    Args:
        easy: the handle.
        target: of the request.
        addresses: IP addresses of its host; empty if the host is written as one.
        headers: of the request.
    """
    scheme, host, port = target.origin
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    easy.setopt(pycurl.URL, f"{scheme}://{authority}/")
    easy.setopt(pycurl.REQUEST_TARGET, target.path)
    # With a `+` the entry leaves libcurl's cache in time.
    listed = ",".join(f"[{address}]" if ":" in address else address for address in addresses)
    easy.setopt(pycurl.RESOLVE, [f"+{authority}:{listed}"] if addresses else [])
    lines = [_line(name, value) for name, value in headers.items()]
    if target.authorization is not None and "Authorization" not in headers:
        lines.append(_line("Authorization", target.authorization))
    easy.setopt(pycurl.HTTPHEADER, lines)


def _line(name: str, value: str) -> bytes:
    value = value.strip(" \t")
    # libcurl sends no header without a value unless it ends like this.
    return (f"{name}: {value}" if value else f"{name};").encode()
