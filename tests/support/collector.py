"""A collector of traces: takes OTLP over HTTP, as the real ones do at their port 4318."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What has arrived so far.

    Args:
        url: for OTEL_EXPORTER_OTLP_ENDPOINT.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def take(self, body: bytes) -> None:
        """The body of a request."""
        message = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self._spans += [span for one in message.resource_spans for part in one.scope_spans for span in part.spans]

    def spans(self, trace: str) -> list[Span]:
        """The spans of one trace, by its id in hexadecimal digits."""
        with self._lock:
            return [span for span in self._spans if span.trace_id.hex() == trace]

    def traces(self) -> set[str]:
        """The ids of all traces."""
        with self._lock:
            return {span.trace_id.hex() for span in self._spans}


@contextmanager
def collector() -> Iterator[Collector]:
    """A running one, on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collected.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collected = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collected
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
