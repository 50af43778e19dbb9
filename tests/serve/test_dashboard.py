"""Prometheus reads a running server, and answers every query of the dashboard and of the alerts."""

import time
from collections.abc import Iterator
from itertools import count

import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import OUT
from operations.grafana.panels import RATE
from operations.grafana.platform_rows import PLATFORM_ROWS
from operations.grafana.server_rows import SERVER_ROWS
from tests.support.drawn_panels import draw
from tests.support.marqo_client import MarqoClient
from tests.support.prometheus import Prometheus, needs_prometheus, prometheus

ROWS = (*SERVER_ROWS, *PLATFORM_ROWS)
QUERIES = {
    (panel.title, query.legend): query.expression for row in ROWS for panel in row.panels for query in panel.queries
}
NOT_HERE = {
    "GPU": "Ray measures the GPUs of a machine that has some",
    "GPU memory": "likewise",
}
"""Panels without series, with the reason."""
VARIABLES = {"$application": "marqo", "$instance": ".*", RATE: "30s"}
WITHIN_S = 80.0

pytestmark = needs_prometheus


@pytest.fixture(scope="module")
def reading(marqo: MarqoClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    # The server runs when it is asked: its ports are known then.
    assert marqo.get("/healthz").status_code == 200
    with prometheus(tmp_path_factory.mktemp("prometheus")) as running:
        yield running


def make_traffic_of_each_kind(marqo: MarqoClient, host: ImageHost, number: int) -> None:
    """Vectors, items that fail, a request that is refused, now and then a model that is loaded, and one that
    cannot be."""
    marqo.embed([f"a red circle, number {number}"])
    pictures = [host.url(f"/ok/{i}.jpg") for i in range(4)]
    assert len(marqo.results([*pictures, host.url("/ok/a.svg"), host.url("/status/404")], "image")) == 6
    assert marqo.post(b"no MessagePack").status_code == 400
    marqo.embed(["a"], model=f"dashboard/{number // 5}", properties={"type": "random", "dimensions": 5})
    assert marqo.vectorise(["a"], model="no/such-model")[0] == 400


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def test_every_panel_shows_something(reading: Prometheus, marqo: MarqoClient, image_host: ImageHost) -> None:
    missing = {key: filled(expression) for key, expression in QUERIES.items() if key[0] not in NOT_HERE}
    end = time.monotonic() + WITHIN_S
    for number in count():
        make_traffic_of_each_kind(marqo, image_host, number)
        missing = {key: expression for key, expression in missing.items() if not reading.series(expression)}
        if not missing or time.monotonic() > end:
            break
    assert sorted(missing) == []
    assert not any(reading.series(filled(query)) for (title, _), query in QUERIES.items() if title in NOT_HERE)


def test_panels_can_be_drawn_without_grafana(reading: Prometheus) -> None:
    OUT.mkdir(exist_ok=True)
    draw(ROWS, lambda expression: reading.series(filled(expression)), OUT / "dashboard.png")
    assert (OUT / "dashboard.png").read_bytes().startswith(b"\x89PNG")


def test_applications_and_nodes_can_be_chosen(reading: Prometheus) -> None:
    applications = {"match[]": "ray_marqo_in_flight_limit"}
    assert "marqo" in reading.ask("label/application/values", **applications)
    assert reading.ask("label/instance/values", **{"match[]": "ray_node_cpu_count"})


def test_alerts_can_be_evaluated_and_a_server_that_is_well_sets_off_none_of_the_critical_ones(
    reading: Prometheus,
) -> None:
    rules = [rule for group in reading.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 15
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
    firing = [rule["name"] for rule in rules if rule["state"] == "firing" and rule["labels"]["severity"] == "critical"]
    assert firing == []
