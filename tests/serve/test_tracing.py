"""One trace for one request, through all three deployments, at a collector; on a server of its own."""

import secrets
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.process import free_port
from tests.support.collector import Collector, collector
from tests.support.ingress import request
from tests.support.launched import READY, launched
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import demo_config
from tests.support.waiting import until

TEXT = Counter(("marqo.device_wait", "marqo.forward"))
PICTURES = TEXT + Counter(2 * ("marqo.download", "marqo.decode_wait", "marqo.decode"))
"""Of two pictures. They may come to the device together, or one after the other."""


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as one:
        yield one


@pytest.fixture(scope="module")
def traced(collected: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarqoClient]:
    """A server that trusts its clients' `traceparent`, and traces nothing by itself."""
    config = demo_config()
    config["http_options"]["port"] = port = free_port()
    environment = {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "deployments.tracing:otlp",
        "RAY_SERVE_TRACING_SAMPLING_RATIO": "0",
        "MARQO_TRUST_TRACEPARENT": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collected.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with launched(tmp_path_factory.mktemp("traced"), config, environment) as command:
        command.wait_for_output(READY)
        yield MarqoClient(f"http://127.0.0.1:{port}")


def sent(client: MarqoClient, body: dict[str, Any], flags: str) -> tuple[str, str]:
    """Ids of the trace and of the span that a client says it is in."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "traceparent": f"00-{trace}-{span}-{flags}"}
    reply = client.post(msgpack.packb(body), headers)
    assert reply.status_code == 200, reply.content
    return trace, span


def pictures(urls: list[str]) -> dict[str, Any]:
    config = {"modelName": "demo/clip", "modelProperties": None}
    return request(urls, modality="image", modelConfig=config, preprocessingConfig={"modality": "image"})


def whole(collected: Collector, trace: str, client: str, names: Counter[str]) -> list[Span]:
    """The spans of a trace, when those of these names have arrived, and each is below another one that has arrived, the
    first below the client's. Each process sends its own, when it has some."""

    def is_whole() -> bool:
        spans = collected.spans(trace)
        known = {span.span_id.hex() for span in spans} | {client}
        return Counter(span.name for span in spans) >= names and client in parents(spans) and parents(spans) <= known

    until(is_whole, 30)
    return collected.spans(trace)


def test_a_picture_is_one_trace(traced: MarqoClient, collected: Collector, image_host: ImageHost) -> None:
    trace, client = sent(traced, pictures([image_host.url("/ok/1.jpg"), image_host.url("/ok/a.webp")]), "01")
    spans = whole(collected, trace, client, PICTURES)
    assert [span.name for span in spans].count("marqo.decode") == 2


def test_a_text_is_one_trace(traced: MarqoClient, collected: Collector) -> None:
    config = {"modelName": "demo/clip", "modelProperties": None}
    trace, client = sent(traced, request(["a red circle"], modelConfig=config), "01")
    spans = whole(collected, trace, client, TEXT)
    (forward,) = [span for span in spans if span.name == "marqo.forward"]
    assert {one.key: one.value.string_value for one in forward.attributes}["marqo.lane"] == "text"


def test_a_client_may_say_no(traced: MarqoClient, collected: Collector) -> None:
    unsampled, _ = sent(traced, request(["a"]), "00")
    after, client = sent(traced, request(["a"]), "01")
    until(lambda: client in parents(collected.spans(after)), 30)
    assert unsampled not in collected.traces()


def parents(spans: list[Span]) -> set[str]:
    return {span.parent_span_id.hex() for span in spans}
