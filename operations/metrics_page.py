"""Ray's metrics page at an address and a port that the operator has chosen.

A server of `operations.launch` keeps Ray's own page on loopback, at a random port, where a Prometheus in another
container cannot read it. On the nodes of a cluster `ray start --metrics-export-port` does it without this module.
"""

import contextlib
import http.client
import http.server
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from operations.errors import StartError
from operations.haproxy.config import LOOPBACK

LISTEN_VARIABLE = "MARQO_RAY_METRICS_LISTEN"
PORT_VARIABLE = "MARQO_RAY_METRICS_PORT"
PATH = "/metrics"
CLIENTS = 8
"""Connections at a time; more are closed."""
CLIENT_TIMEOUT_S = 10.0
"""For a client that neither sends nor reads."""
PAGE_TIMEOUT_S = 30.0


class Place(NamedTuple):
    """Where the page is served: an IP address and a port."""

    host: str
    port: int


def wanted(environment: Mapping[str, str]) -> Place | None:
    """Where the variables say that the page is to be; None if they do not.

    Raises:
        StartError: a variable is no address or no port, or there is an address without a port.
    """
    host, port = environment.get(LISTEN_VARIABLE, ""), environment.get(PORT_VARIABLE, "")
    if host:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise StartError(f"{LISTEN_VARIABLE}: `{host}` is no IP address; say 0.0.0.0 for every interface") from None
        if not port:
            raise StartError(f"{LISTEN_VARIABLE} is set without a port: set {PORT_VARIABLE} too")
    if not port:
        return None
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise StartError(f"{PORT_VARIABLE}: `{port}` is no port; say a number from 1 to 65535")
    return Place(host or LOOPBACK, int(port))


@contextlib.contextmanager
def served(place: Place | None, rays_port: Callable[[], int | None]) -> Iterator[None]:
    """Serves the page within the context.

    Args:
        place: from `wanted`; with None nothing is done.
        rays_port: the port of Ray's own page on loopback, None while there is none; called from threads.

    Raises:
        StartError: the port cannot be listened at.
    """
    if place is None:
        yield
        return
    try:
        server = _Server(place, rays_port)
    except OSError as error:
        raise StartError(
            f"the metrics page cannot listen at port {place.port} of {place.host} ({error.strerror}): "
            f"set another {PORT_VARIABLE} or {LISTEN_VARIABLE}"
        ) from None
    threading.Thread(target=server.serve_forever, name="metrics page", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, place: Place, rays_port: Callable[[], int | None]) -> None:
        self.address_family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
        self.rays_port = rays_port
        self._free = threading.BoundedSemaphore(CLIENTS)
        super().__init__(place, _Handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = CLIENT_TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        if self.path != PATH:
            return self.send_error(404)
        if (port := self.server.rays_port()) is None:
            return self.send_error(503)
        page = http.client.HTTPConnection(LOOPBACK, port, timeout=PAGE_TIMEOUT_S)
        try:
            page.request("GET", PATH, headers={"Accept": self.headers.get("Accept", "text/plain")})
            answer = page.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return self.send_error(502)
        finally:
            page.close()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""
