"""Traces for an OTLP collector: what `RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH` names to switch them on.

Serve makes spans for the calls of deployments and passes their context on. The stages within a replica come from
`embedding.trail`, as spans below the one of their call. Spans are sent by a thread from a bounded queue, and dropped if
the collector does not take them: no request waits for it. See docs/decisions/054-traces.md.
"""

import time
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

from embedding import trail

PREFIX = "marqo."
"""Of the names of spans and attributes."""


def otlp() -> list[SpanProcessor]:
    """What sends the spans of this process by OTLP over HTTP; the variables OTEL_EXPORTER_OTLP_* say where. Serve calls
    it once in each process that it traces, before the replica is made.

    Raises:
        ImportError: the extra `tracing` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    trail.follow(_Spans())
    return [BatchSpanProcessor(OTLPSpanExporter())]


class _Spans:
    """Makes a span of each interval of a request that is sampled."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(__name__)

    def here(self) -> SpanContext | None:
        context = trace.get_current_span().get_span_context()
        return context if context.is_valid and context.trace_flags.sampled else None

    def passed(self, request: SpanContext, stage: str, began: float, ended: float, told: dict[str, Any]) -> None:
        offset_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            PREFIX + stage,
            context=set_span_in_context(NonRecordingSpan(request)),
            start_time=offset_ns + int(began * 1e9),
            attributes={PREFIX + name: value for name, value in told.items()},
        )
        span.end(offset_ns + int(ended * 1e9))
