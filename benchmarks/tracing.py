"""What traces cost: CPU time per picture and per search of servers side by side that differ in nothing else.

The load generator and a collector that reads and forgets share the machine. Rounds alternate between the servers, and
each round begins with another one, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.collector import collecting
from benchmarks.lib.load import closed_loop, once, one_after_the_other
from benchmarks.lib.process import free_port
from benchmarks.lib.queries import queries
from benchmarks.lib.server import Running, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.web import web

EXPORTER = {"RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "deployments.tracing:otlp"}
SERVERS: Mapping[str, Mapping[str, str]] = {
    "off": {},
    "on, Ray's default ratio": EXPORTER,
    "on, every request": {**EXPORTER, "RAY_SERVE_TRACING_SAMPLING_RATIO": "1"},
}
"""Environment of each server."""
OWN_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
"""Of each server; otherwise all would have those of this process's environment."""
OFF = "off"
WORK = ("picture", "search")
CLIENTS = 4


def measure(quick: bool) -> Result:
    """CPU milliseconds of each server per picture, in requests of 32, and per search, one after the other."""
    rounds, seconds, searches = (3, 4.0, 100) if quick else (9, 8.0, 300)
    checkpoint, paths = models.small_clip(), pictures.normal()
    with web(paths) as urls, collecting() as endpoint, ExitStack() as stack:
        servers = {}
        for name, variables in SERVERS.items():
            ports = {variable: str(free_port()) for variable in OWN_PORTS}
            environment = {**ports, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables}
            servers[name] = stack.enter_context(graph(environment=environment))
        for server in servers.values():
            once(marqo(server.url, checkpoint.properties), urls[:1])
        measured = []
        for number in range(rounds):
            names = [*servers][number % len(servers) :] + [*servers][: number % len(servers)]
            measured.append(
                {name: _round(servers[name], checkpoint.properties, urls, seconds, searches) for name in names}
            )
    return {"rounds": measured}


def rows(result: Mapping[str, Any]) -> Table:
    """Medians, and the medians of what each round costs more than without traces."""
    table = [["traces", *(f"CPU ms per {work}" for work in WORK), *(f"more per {work}" for work in WORK)]]
    for name in SERVERS:
        medians = [statistics.median(one[name][work] for one in result["rounds"]) for work in WORK]
        more = [f"{100 * statistics.median(_more(result, name, work)):+.1f} %" for work in WORK]
        table.append([name, *(f"{median:.2f}" for median in medians), *more])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """What traces cost at Ray's ratio, as a part of the CPU time without them."""
    return {f"tracing_cost_{work}": _more(result, "on, Ray's default ratio", work) for work in WORK}


def _more(result: Mapping[str, Any], name: str, work: str) -> list[float]:
    return [one[name][work] / one[OFF][work] - 1 for one in result["rounds"]]


def _round(
    server: Running, properties: Mapping[str, Any], urls: Sequence[str], seconds: float, searches: int
) -> dict[str, float]:
    meter = server.meter()
    served = closed_loop(marqo(server.url, properties), urls, CLIENTS, seconds, meter)
    meter.lap()
    one_after_the_other(marqo(server.url, properties, "language", True), queries(searches), searches)
    search_ms = 1000 * sum(meter.lap().values()) / searches
    return {"picture": sum(served.cpu_ms.values()), "search": search_ms}


BENCHMARK = Benchmark(
    name="tracing",
    title="What traces cost, small CLIP: CPU milliseconds of servers side by side",
    measure=measure,
    rows=rows,
    summary=summary,
)
