"""The latency of text queries at a constant arrival rate, on an idle server and while indexing saturates it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.bare import bare_text
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.load import background, open_loop
from benchmarks.lib.percentiles import percentile
from benchmarks.lib.queries import queries
from benchmarks.lib.server import Shape, described, graph
from benchmarks.lib.target import Target, marqo
from benchmarks.lib.web import web

RATE = 10.0
"""Queries per second."""
CLIENTS = 4
"""That index pictures."""
TEXTS = 500
"""Different queries."""
PERCENTS = (50, 95, 99)


def measure(quick: bool) -> Result:
    """Rounds of idle and loaded in alternation: all latencies of each, and pictures indexed per second meanwhile."""
    rounds, seconds = (2, 4.0) if quick else (3, 20.0)
    checkpoint, paths = models.small_clip(), pictures.normal()
    bare, bare_paused = bare_text(checkpoint), bare_text(checkpoint, 1 / RATE)
    texts = queries(TEXTS)
    with web(paths) as urls, graph() as server:
        search = marqo(server.url, checkpoint.properties, "language", search=True)
        bulk = marqo(server.url, checkpoint.properties)
        open_loop(search, texts, RATE, 2.0)
        measured = [_round(search, texts, bulk, urls, seconds) for _ in range(rounds)]
    return {
        "shape": described(Shape()),
        "rate": RATE,
        "clients": CLIENTS,
        "bare ms": bare,
        "bare ms, paused": bare_paused,
        "rounds": measured,
    }


def rows(result: Mapping[str, Any]) -> Table:
    """Percentiles of the latencies in milliseconds, and of the bare work for comparison."""
    rounds = result["rounds"]
    header = ["", *(f"p{percent}" for percent in PERCENTS)]
    medians = [
        [name, *(f"{_median(rounds, name, percent):.1f}" for percent in PERCENTS)] for name in ("idle", "loaded")
    ]
    table = [header, *medians]
    ratios = [_median(rounds, "loaded", percent) / _median(rounds, "idle", percent) for percent in PERCENTS]
    table.append(["loaded / idle", *(f"{ratio:.2f}" for ratio in ratios)])
    table.append(["bare tokenise + encode, one after the other", f"{result['bare ms']:.1f}", "", ""])
    table.append(["… with the pauses of the idle queries", f"{result['bare ms, paused']:.1f}", "", ""])
    rate = statistics.median(one["pictures per second"] for one in rounds)
    table.append([f"(pictures indexed per second meanwhile: {rate:.0f})", "", "", ""])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """Latencies of each round, and by how much the median exceeds the bare work."""
    rounds = result["rounds"]
    idle, loaded = ([percentile(one[name], 95) for one in rounds] for name in ("idle", "loaded"))
    return {
        "text_p95_loaded_over_idle": [high / low for high, low in zip(loaded, idle, strict=True)],
        "text_p95_idle_ms": idle,
        "text_p50_idle_over_bare_ms": [percentile(one["idle"], 50) - result["bare ms"] for one in rounds],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Both distributions, cumulated."""
    for name in ("idle", "loaded"):
        latencies = sorted(latency for one in result["rounds"] for latency in one[name])
        axes.plot(latencies, [100 * (i + 1) / len(latencies) for i in range(len(latencies))], label=name)
    axes.set_xscale("log")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("% of queries answered")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _round(search: Target, texts: list[str], bulk: Target, urls: list[str], seconds: float) -> dict[str, Any]:
    idle = open_loop(search, texts, RATE, seconds)
    with background(bulk, urls, CLIENTS) as answered:
        before = answered()
        loaded = open_loop(search, texts, RATE, seconds)
        indexed = (answered() - before) / seconds
    return {"idle": idle, "loaded": loaded, "pictures per second": indexed, "load average": os.getloadavg()[0]}


def _median(rounds: list[Mapping[str, Any]], name: str, percent: int) -> float:
    return statistics.median(percentile(one[name], percent) for one in rounds)


BENCHMARK = Benchmark(
    name="latency",
    title="Text query latency in milliseconds, open loop, idle and under saturating indexing",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    by_default=True,
)
