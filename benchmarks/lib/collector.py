"""Takes traces by OTLP over HTTP, as collectors do at their port 4318."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def collecting(take: Callable[[bytes, str], object] = lambda body, encoding: None) -> Iterator[str]:
    """Runs on loopback while the context lasts.

    Args:
        take: called with each body and its Content-Encoding, in a thread of its own.

    Yields:
        The address, for OTEL_EXPORTER_OTLP_ENDPOINT.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            take(self.rfile.read(int(self.headers["Content-Length"])), self.headers.get("Content-Encoding", ""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
