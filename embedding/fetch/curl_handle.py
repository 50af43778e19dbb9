"""Easy handles of libcurl: the options that all requests share, and those of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pycurl
from multidict import CIMultiDict

from embedding.fetch.url import Target

if TYPE_CHECKING:
    from embedding.fetch.exchange import Exchange

# One buffer serves all transfers of a pool.
_BUFFER_BYTES = 64 * 2**10


class Handle:
    """An easy handle, which carries one exchange at a time. Handles are reused, since making one is expensive.

    Args:
        ca_file: PEM file of the trusted certificate authorities.
        keepalive_s: seconds for which an idle connection is kept.

    Attributes:
        easy: the handle of pycurl.
        exchange: the exchange that it carries, whose methods libcurl calls; None while the handle is not in use.
    """

    def __init__(self, ca_file: str, keepalive_s: float) -> None:
        self.exchange: Exchange | None = None
        self.easy = _new_easy(ca_file, keepalive_s)
        self.easy.setopt(pycurl.OPENSOCKETFUNCTION, lambda *arguments: self._carried.open_socket(*arguments))
        self.easy.setopt(pycurl.PREREQFUNCTION, lambda *arguments: self._carried.connected(*arguments))
        self.easy.setopt(pycurl.HEADERFUNCTION, lambda line: self._carried.header(line))
        self.easy.setopt(pycurl.WRITEFUNCTION, lambda data: self._carried.write(data))

    @property
    def _carried(self) -> Exchange:
        assert self.exchange is not None
        return self.exchange


def _new_easy(ca_file: str, keepalive_s: float) -> Any:
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
        target: what is requested.
        addresses: IP addresses of its host; empty if the host is written as an address.
        headers: headers of the request.
    """
    scheme, host, port = target.origin
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    easy.setopt(pycurl.URL, f"{scheme}://{authority}/")
    easy.setopt(pycurl.REQUEST_TARGET, target.path)
    # Without the `+` the entry would stay in libcurl's DNS cache for ever; with it, for DNS_CACHE_TIMEOUT.
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
