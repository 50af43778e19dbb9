"""Ray's metrics page at a place of the operator's choice, in front of a page of the standard library's HTTP server."""

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.lib.process import free_port
from operations.errors import StartError
from operations.metrics_page import CLIENTS, LISTEN_VARIABLE, PORT_VARIABLE, Place, served, wanted

PAGE = b"# HELP ray_marqo_in_flight\nray_marqo_in_flight 0.0\n"


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def a_page() -> Iterator[int]:
    """Its port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def get(place: Place, path: str = "/metrics") -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{place.port}{path}", timeout=10, trust_env=False)


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({PORT_VARIABLE: "", LISTEN_VARIABLE: ""}, None),
        ({PORT_VARIABLE: "8079"}, ("127.0.0.1", 8079)),
        ({PORT_VARIABLE: "8079", LISTEN_VARIABLE: "0.0.0.0"}, ("0.0.0.0", 8079)),
        ({PORT_VARIABLE: "65535", LISTEN_VARIABLE: "::"}, ("::", 65535)),
    ],
)
def test_where_the_page_is_wanted(environment: dict[str, str], place: tuple[str, int] | None) -> None:
    assert wanted(environment) == place


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({LISTEN_VARIABLE: "0.0.0.0"}, "without a port"),
        ({PORT_VARIABLE: "8079", LISTEN_VARIABLE: "everywhere"}, "`everywhere` is no IP address"),
        ({PORT_VARIABLE: "0"}, "`0` is no port"),
        ({PORT_VARIABLE: "65536"}, "`65536` is no port"),
        ({PORT_VARIABLE: "any"}, "`any` is no port"),
        ({PORT_VARIABLE: "٨٠"}, "is no port"),
    ],
)
def test_a_wrong_variable_is_an_error(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(StartError, match=problem):
        wanted(environment)


def test_the_page_is_passed_on() -> None:
    place = Place("0.0.0.0", free_port())
    with a_page() as port, served(place, lambda: port):
        reply = get(place)
        assert (reply.status_code, reply.content) == (200, PAGE)
        assert reply.headers["content-type"] == "text/plain; version=0.0.4"
        assert get(place, "/").status_code == 404
        assert httpx.post(f"http://127.0.0.1:{place.port}/metrics", trust_env=False).status_code == 501


def test_without_rays_page_there_is_an_error_and_later_a_page() -> None:
    place, ports = Place("127.0.0.1", free_port()), [None, free_port()]
    with served(place, lambda: ports[0]):
        assert get(place).status_code == 503
        ports[0] = ports[1]
        assert get(place).status_code == 502
        with a_page() as ports[0]:
            assert get(place).status_code == 200


def test_a_busy_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = Place("127.0.0.1", other.getsockname()[1])
        with pytest.raises(StartError, match=rf"port {place.port} .* set another {PORT_VARIABLE}"), served(place, int):
            pass


def test_silent_clients_are_limited_in_number() -> None:
    place = Place("127.0.0.1", free_port())
    with a_page() as port, served(place, lambda: port), contextlib.ExitStack() as silent:
        for _ in range(CLIENTS):
            silent.enter_context(socket.create_connection(("127.0.0.1", place.port)))
        with pytest.raises(httpx.TransportError):
            get(place)


def test_nothing_is_served_unasked() -> None:
    with served(None, int):
        pass
