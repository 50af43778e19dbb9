"""What a running graph tells Prometheus, read where Prometheus reads it."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import httpx
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.lib.cluster import DEPLOYMENTS
from deployments.ray_internals import for_this_thread
from deployments.replica_stats import ReplicaStats

TIMEOUT_S = 60.0
Tags = tuple[tuple[str, str], ...]


class Line(NamedTuple):
    """A line of what Prometheus reads."""

    name: str
    tags: dict[str, str]
    value: float


def lines(prefix: str = "ray_marqo_") -> list[Line]:
    """All metrics whose names begin so, of all nodes."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    # Ray goes on listing nodes that have been killed.
    ports = [node["MetricsExportPort"] for node in nodes if node["Alive"]]
    page = "\n".join(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text for port in ports)
    found = re.findall(rf"^({prefix}\w*){{([^}}]*)}} (\S+)$", page, re.MULTILINE)
    return [Line(name, dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)) for name, tags, value in found]


@cache
def _handle(deployment: str) -> DeploymentHandle[Any]:
    return for_this_thread(serve.get_deployment_handle(deployment, "marqo"))


def replicas() -> list[ReplicaStats]:
    """What all replicas of the main application say of themselves."""
    calls = [_handle(deployment).broadcast("stats") for deployment in DEPLOYMENTS]
    return [stats for call in calls for stats in call.results(timeout_s=60)]


def counted() -> Counter[tuple[str, Tags]]:
    """All that the replicas of the main application have counted: of counters the value, of a histogram the number of
    values and their sum, under its name with those suffixes."""
    total: Counter[tuple[str, Tags]] = Counter()
    for stats in replicas():
        for name, tags, value in counted_by(stats):
            total[name, tags] += value  # type: ignore[assignment]  # numbers with a fraction
    return total


def counted_by(stats: ReplicaStats) -> Iterator[tuple[str, Tags, float]]:
    """As `counted`, of one replica."""
    for name, values in stats.snapshot["counters"].items():
        yield from ((name, tuple(value["tags"].items()), value["value"]) for value in values)
    for name, distributions in stats.snapshot["histograms"].items():
        for one in distributions:
            yield f"{name}_count", tuple(one["tags"].items()), one["count"]
            yield f"{name}_sum", tuple(one["tags"].items()), one["sum"]


def scraped(name: str, **wanted: str) -> float:
    """The sum of a metric over everything that has the wanted labels; 0 if it has not been reported yet."""
    found = (
        line for line in lines(f"ray_{name}") if line.name == f"ray_{name}" and wanted.items() <= line.tags.items()
    )
    return sum(line.value for line in found)


def wait_for(condition: Callable[[], bool], what: object) -> None:
    """Polls; metrics are reported every few seconds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never reached the metrics"
        time.sleep(0.5)


def wait_until_all_but_downloads_are_done(application: str, downloads: int) -> None:
    """Waits until an application works on no item, while so many wait for their downloads."""

    def held(what: str) -> float:
        return scraped("marqo_in_flight", application=application, what=what)

    # In this order: what is worked on is told together with what waits, or later.
    wait_for(lambda: held("waiting contents") == downloads and held("contents") == 0, f"{downloads} downloads alone")
