"""A collector of traces: takes OTLP over HTTP, as the real ones do at their port 4318."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.lib.collector import collecting


class Collector:
    """What has arrived so far."""

    def __init__(self) -> None:
        self.url = ""
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def take(self, body: bytes, encoding: str) -> None:
        """The body of a request, and its Content-Encoding."""
        message = ExportTraceServiceRequest.FromString(gzip.decompress(body) if encoding == "gzip" else body)
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
    collected = Collector()
    with collecting(collected.take) as url:
        collected.url = url
        yield collected
