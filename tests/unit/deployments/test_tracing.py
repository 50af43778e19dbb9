"""Spans of the stages within a replica, sent to a collector by the real exporter."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from benchmarks.lib.photo import jpeg, photo
from deployments.tracing import otlp
from embedding import trail
from embedding.batching import DeviceQueue, Job
from embedding.image.fair_queue import Call
from embedding.image.lanes import Lanes
from embedding.image.pixels import ImageLimits
from embedding.image_spec import ImageSpec
from tests.support.collector import Collector, collector

SILENT_S = 60.0
"""A hundredth of what spans would take that waited for a collector."""
SPEC = ImageSpec((32, 32), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as one:
        yield one


@pytest.fixture(scope="module")
def provider(collected: Collector) -> Iterator[TracerProvider]:
    """Made as Serve makes it in a replica; a process can have one only."""
    environment = pytest.MonkeyPatch()
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collected.url)
    (processor,) = otlp()
    environment.undo()
    made = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.5)))
    made.add_span_processor(processor)
    trace.set_tracer_provider(made)
    yield made
    trail.follow(None)
    made.shutdown()


@pytest.fixture
def tracer(provider: TracerProvider) -> Tracer:
    """Samples everything."""
    return TracerProvider(sampler=ALWAYS_ON).get_tracer("test")


def stages(spans: list[Span], parent: int) -> dict[str, Span]:
    """By name; all are below one span."""
    assert {span.parent_span_id.hex() for span in spans} <= {f"{parent:016x}"}
    return {span.name: span for span in spans}


def test_a_picture_waits_for_a_decoder_and_is_decoded(
    collected: Collector, provider: TracerProvider, tracer: Tracer
) -> None:
    async def decode() -> None:
        lanes = Lanes(1, ImageLimits(10**8, 5.0))
        try:
            await lanes.decode(jpeg(photo(1, 60, 60)), SPEC, "a.jpg", Call())
        finally:
            lanes.close()

    before = time.time_ns()
    with tracer.start_as_current_span("request") as span:
        asyncio.run(decode())
    provider.force_flush()

    context = span.get_span_context()
    found = stages(collected.spans(f"{context.trace_id:032x}"), context.span_id)
    assert found.keys() == {"marqo.decode_wait", "marqo.decode"}
    wait, work = found["marqo.decode_wait"], found["marqo.decode"]
    slack = 10**6  # of the two clocks
    assert before - slack <= wait.start_time_unix_nano <= wait.end_time_unix_nano <= work.end_time_unix_nano
    assert work.end_time_unix_nano <= time.time_ns() + slack


def test_jobs_of_one_batch_have_a_span_each_in_their_own_trace(
    collected: Collector, provider: TracerProvider, tracer: Tracer
) -> None:
    def run(_: object, payloads: object) -> list[np.ndarray]:
        return [np.zeros(len(payload)) for payload in payloads]  # type: ignore[attr-defined]

    queue = DeviceQueue(run, ThreadPoolExecutor(1), lambda group: "text", {"text": 8})
    contexts = []

    async def put() -> None:
        jobs = []
        for count in (2, 3):
            with tracer.start_as_current_span("request") as span:
                contexts.append(span.get_span_context())
                jobs.append(queue.put(Job("g", ["a"] * count, count, request=trail.here())))
        jobs.append(queue.put(Job("g", ["a"], 1, request=trail.here())))  # of a request that is not traced
        await asyncio.gather(*jobs)

    asyncio.run(put())
    provider.force_flush()
    assert len({context.trace_id for context in contexts}) == 2
    for context in contexts:
        found = stages(collected.spans(f"{context.trace_id:032x}"), context.span_id)
        assert found.keys() == {"marqo.device_wait", "marqo.forward"}
        told = {one.key: one.value for one in found["marqo.forward"].attributes}
        assert (told["marqo.batch_jobs"].int_value, told["marqo.batch_items"].int_value) == (3, 6)
        assert told["marqo.lane"].string_value == "text"


def test_a_request_that_is_not_sampled_has_no_spans(collected: Collector, provider: TracerProvider) -> None:
    unsampled = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(0))
    with trace.use_span(trace.NonRecordingSpan(unsampled)):
        assert trail.here() is None
        trail.passed(trail.here(), "decode", time.monotonic())
    provider.force_flush()
    assert f"{1:032x}" not in collected.traces()


def test_nobody_waits_for_a_collector_that_is_silent(monkeypatch: pytest.MonkeyPatch, tracer: Tracer) -> None:
    """It takes connections and never answers. What does not fit into the queue of spans is dropped: if they waited for
    the collector, each would take a second."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        (processor,) = otlp()
        lost = TracerProvider(sampler=ALWAYS_ON)
        lost.add_span_processor(processor)
        spans = threading.Thread(target=make_spans, args=(lost, 10_000), daemon=True)
        spans.start()
        silent.settimeout(SILENT_S)
        asked, _ = silent.accept()
        with asked:
            spans.join(SILENT_S)
            assert not spans.is_alive()
    lost.shutdown()


def make_spans(provider: TracerProvider, count: int) -> None:
    for _ in range(count):
        provider.get_tracer("lost").start_span("one").end()


def test_a_follower_that_fails_does_not_fail_the_work() -> None:
    class Failing:
        def here(self) -> int:
            return 1

        def passed(self, *_: object) -> None:
            raise ValueError

    queue = DeviceQueue(lambda _, payloads: list(payloads), ThreadPoolExecutor(1), lambda group: "text", {"text": 8})

    async def put() -> object:
        return await queue.put(Job("g", ["a"], 1, request=trail.here()))

    trail.follow(Failing())
    try:
        assert asyncio.run(put()) == ["a"]
    finally:
        trail.follow(None)
