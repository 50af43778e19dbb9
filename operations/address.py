"""The addresses at which HAProxy listens, and the URL at which a client on this machine reaches it."""

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from typing import Any

from operations.haproxy.config import LISTEN_VARIABLE, LOOPBACK, PAGES, AddressError, pages_of

DEFAULT_PORT = 8000
"""Serve's default."""
EVERY_ADDRESS = {"0.0.0.0": LOOPBACK, "::": "::1"}
"""Addresses that stand for every interface, each with the loopback address at which clients on this machine connect."""


def host_of(http: Mapping[str, Any]) -> str | None:
    """`http_options.host`: loopback by default. None (`null` in a config) means every interface."""
    host: str | None = http.get("host", LOOPBACK)
    return host


def addresses(host: str | None) -> list[str]:
    """The IP addresses of a host of this machine.

    Args:
        host: an address or a name of this machine, `0.0.0.0` or `::`; None for every interface.

    Raises:
        OSError: the name cannot be resolved.
    """
    if host is None:
        return ["::"] if _can_listen("::", 0) else ["0.0.0.0"]
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    every = list(dict.fromkeys(str(address[0]) for *_, address in found))
    # A name may have an IPv6 address although this machine has no IPv6.
    return [address for address in every if _can_listen(address, 0)] or every


def asked_at(host: str | None) -> str:
    """The host in the URL of a client on this machine."""
    with contextlib.suppress(OSError):
        host = addresses(host)[0]
    host = EVERY_ADDRESS.get(host or "", host or LOOPBACK)
    return f"[{host}]" if ":" in host else host


def url_of(http: Mapping[str, Any]) -> str:
    """The server's URL for a client on this machine, without a slash at its end."""
    return f"http://{asked_at(host_of(http))}:{http.get('port', DEFAULT_PORT)}"


def problem(host: str | None, port: int) -> str | None:
    """The reason why a server cannot listen there, as one sentence, or None. Without this check Serve's own proxy would
    share the port with another program, without any message."""
    try:
        for address in addresses(host):
            _listen(address, port)
    except OverflowError:
        return f"port {port} cannot be used: a port is a number from 1 to 65535"
    except OSError as error:
        return f"port {port} on {host} cannot be used ({error.strerror}): {_remedy(error)}"
    return None


def pages_problem() -> str | None:
    """The reason why the pages of statistics and metrics cannot listen where the environment says, or None. Without
    this check HAProxy would not start, and only its log would say why."""
    try:
        for heading, found in pages_of(os.environ).items():
            for address in found:
                if not _can_listen(address, 0):
                    return f"{PAGES[heading]}: this machine cannot listen at {address}; name an address that it has"
    except AddressError as error:
        return str(error)
    return None


def _remedy(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "set http_options.host to an address of this machine, or 0.0.0.0 for all"
    return {
        errno.EADDRINUSE: "stop what uses it, or set another http_options.port",
        errno.EADDRNOTAVAIL: "no such address on this machine; set http_options.host to one that it has, or 0.0.0.0",
        errno.EACCES: "ports below 1024 are reserved for root; set http_options.port to a higher one",
    }.get(error.errno or 0, "set another http_options.host or http_options.port")


def for_serve(http: Mapping[str, Any]) -> dict[str, Any]:
    """The `http_options` that Serve itself gets, for a server on this machine alone.

    With HAProxy, the HTTP ports of replicas and of Serve's Python proxy stay on loopback, so that remote clients cannot
    bypass HAProxy's limits; HAProxy gets its own addresses by `LISTEN_VARIABLE`.

    Raises:
        OSError: the name cannot be resolved.
    """
    listen = addresses(host_of(http))
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return dict(http) | {"host": listen[0]}
    os.environ[LISTEN_VARIABLE] = ",".join(listen)
    return dict(http) | {"host": LOOPBACK}


def for_schema(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without a `null` host, which Serve's schema does not allow."""
    http = {name: value for name, value in config.get("http_options", {}).items() if (name, value) != ("host", None)}
    return dict(config) | {"http_options": http}


def _can_listen(address: str, port: int) -> bool:
    try:
        _listen(address, port)
    except OSError:
        return False
    return True


def _listen(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        # Lingering connections of a server that has ended do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen()
