"""The latency of text queries at a constant arrival rate, on an idle server and while indexing saturates it.

Each round also takes the time in which a process like the encoder's computes such vectors, with nothing around it: with
the pauses that idle queries leave, in which caches get cold, and without. What is beyond it is the cost of serving.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.bare import computing_text
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
PAUSED, UNPAUSED = "computing, paused", "computing, unpaused"


def measure(quick: bool) -> Result:
    """Rounds of idle and loaded in alternation: all latencies of each, and pictures indexed per second meanwhile."""
    rounds, seconds = (2, 4.0) if quick else (3, 20.0)
    checkpoint, paths = models.small_clip(), pictures.normal()
    texts = queries(TEXTS)
    with web(paths) as urls, computing_text(checkpoint) as compute, graph() as server:
        search = marqo(server.url, checkpoint.properties, "language", search=True)
        bulk = marqo(server.url, checkpoint.properties)
        open_loop(search, texts, RATE, 2.0)
        measured = [_round(search, texts, bulk, urls, compute, seconds) for _ in range(rounds)]
    return {
        "shape": described(Shape()),
        "rate": RATE,
        "clients": CLIENTS,
        "rounds": measured,
    }


def rows(result: Mapping[str, Any]) -> Table:
    """Percentiles in milliseconds: latencies, computing alone, and what an idle query takes beyond that."""
    rounds = result["rounds"]
    table = [["", *(f"p{percent}" for percent in PERCENTS)]]
    for name, label in (("idle", "idle"), (PAUSED, "computing alone, with the pauses of idle queries")):
        table.append([label, *(f"{_median(rounds, name, percent):.1f}" for percent in PERCENTS)])
    table.append(["idle - computing", *(f"{statistics.median(_beyond(rounds, PAUSED, p)):.1f}" for p in PERCENTS)])
    table.append(["computing alone, without pauses", *(f"{_median(rounds, UNPAUSED, p):.1f}" for p in PERCENTS)])
    table.append(["loaded", *(f"{_median(rounds, 'loaded', percent):.1f}" for percent in PERCENTS)])
    table.append(["loaded / idle", *(f"{statistics.median(_slower(rounds, p)):.2f}" for p in PERCENTS)])
    rate = statistics.median(one["pictures per second"] for one in rounds)
    table.append([f"(pictures indexed per second meanwhile: {rate:.0f})", "", "", ""])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """Latencies of each round, by how much they exceed computing, and by how much indexing makes them longer."""
    rounds = result["rounds"]
    return {
        "text_p95_loaded_over_idle": _slower(rounds, 95),
        "text_p50_idle_ms": [percentile(one["idle"], 50) for one in rounds],
        "text_p95_idle_ms": [percentile(one["idle"], 95) for one in rounds],
        "text_p50_idle_over_computing_ms": _beyond(rounds, PAUSED, 50),
        "text_p50_idle_over_bare_ms": _beyond(rounds, UNPAUSED, 50),
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


def _round(
    search: Target,
    texts: list[str],
    bulk: Target,
    urls: list[str],
    compute: Callable[[int, float], list[float]],
    seconds: float,
) -> dict[str, Any]:
    idle = open_loop(search, texts, RATE, seconds)
    paused = compute(int(RATE * seconds), 1 / RATE)
    unpaused = compute(int(RATE * seconds), 0.0)
    with background(bulk, urls, CLIENTS) as answered:
        before = answered()
        loaded = open_loop(search, texts, RATE, seconds)
        indexed = (answered() - before) / seconds
    return {
        "idle": idle,
        PAUSED: paused,
        UNPAUSED: unpaused,
        "loaded": loaded,
        "pictures per second": indexed,
        "load average": os.getloadavg()[0],
    }


def _beyond(rounds: list[Mapping[str, Any]], computing: str, percent: int) -> list[float]:
    return [percentile(one["idle"], percent) - percentile(one[computing], percent) for one in rounds]


def _slower(rounds: list[Mapping[str, Any]], percent: int) -> list[float]:
    return [percentile(one["loaded"], percent) / percentile(one["idle"], percent) for one in rounds]


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
