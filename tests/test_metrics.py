"""What a running encoder tells Prometheus, read where Prometheus reads it."""

import re
import time
from typing import Any

import httpx
import ray
from marqo_client import MarqoClient

PATIENCE_S = 60.0


def scraped(name: str) -> float:
    """The sum of a metric over all replicas; 0 if nobody has told it yet."""
    (node,) = ray.nodes()
    page = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10).text
    return sum(float(value) for value in re.findall(rf"^ray_{name}{{[^}}]*}} (\S+)$", page, re.MULTILINE))


def test_models_their_load_times_and_batches_are_in_the_metrics(marqo: MarqoClient) -> None:
    properties: dict[str, Any] = {"type": "random", "dimensions": 5}
    before = scraped("marqo_models_loads"), scraped("marqo_batch_items_count")
    marqo.results(["a red circle"], model="metrics/one", properties=properties)
    deadline = time.monotonic() + PATIENCE_S
    while scraped("marqo_models_loads") <= before[0] or scraped("marqo_batch_items_count") <= before[1]:
        assert time.monotonic() < deadline, "the load of a model never reached the metrics"
        time.sleep(0.5)
    assert scraped("marqo_models_load_seconds") > 0
    assert scraped("marqo_models_bytes") > 0, "the demo model is preloaded"
    assert scraped("marqo_models_failed_loads") >= 0
