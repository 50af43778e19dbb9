"""What a running graph tells Prometheus, read where Prometheus reads it."""

import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import ray
from conftest import Serve
from marqo_client import MarqoClient
from test_preload import config

PATIENCE_S = 60.0


def scraped(name: str, **wanted: str) -> float:
    """The sum of a metric over everything that has the wanted labels; 0 if nobody has told it yet."""
    # Ray goes on listing nodes that have been killed.
    ports = [node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]
    page = "\n".join(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text for port in ports)
    lines = re.findall(rf"^ray_{name}{{([^}}]*)}} (\S+)$", page, re.MULTILINE)
    pairs = {f'{label}="{value}"' for label, value in wanted.items()}
    return sum(float(value) for labels, value in lines if all(pair in labels for pair in pairs))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Metrics are told every few seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never reached the metrics"
        time.sleep(0.5)


def test_models_their_load_times_and_batches(marqo: MarqoClient) -> None:
    properties: dict[str, Any] = {"type": "random", "dimensions": 5}
    loads, batches = scraped("marqo_models_loads"), scraped("marqo_batch_items_count")
    marqo.results(["a red circle"], model="metrics/one", properties=properties)
    wait_for(lambda: scraped("marqo_models_loads") > loads, "the load of a model")
    wait_for(lambda: scraped("marqo_batch_items_count") > batches, "a batch")
    assert scraped("marqo_models_load_seconds") > 0
    assert scraped("marqo_models_bytes") > 0, "the demo model is preloaded"


def test_an_ingress_goes_through_the_graph_before_anybody_asks(serve_instance: Serve) -> None:
    """One picture to a preprocessor and on to an encoder, which opens the connections; no model is loaded for it."""

    def calls(deployment: str) -> float:
        # A replica's own counter of calls, health checks not among them.
        return scraped("serve_deployment_request_counter_total", application="warmed", deployment=deployment)

    warmed = config(1) | {"name": "warmed", "route_prefix": "/warmed"}
    try:
        serve_instance.deploy(warmed)
        for deployment in ("Preprocessor", "Encoder"):
            wait_for(lambda deployment=deployment: calls(deployment) == 1, f"the warm-up of {deployment}")
    finally:
        serve_instance.deploy()
