"""End to end over HTTP: URLs of pictures in, vectors out. Throughput, and CPU time next to that of the bare stages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.bare import PIPELINE, bare, bare_on_all_cores
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.load import closed_loop, one_after_the_other
from benchmarks.lib.percentiles import percentile
from benchmarks.lib.queries import queries
from benchmarks.lib.server import Running, Shape, described, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.web import web

CLIENTS = 4
GROUPS = ("encoder", "preprocessor", "ingress", "proxy", "ray")
"""Of the server's processes."""


def measure(quick: bool) -> Result:
    """Rounds of bare stages and serving in alternation, and latencies of single requests on the idle server."""
    checkpoint, paths = models.small_clip(), pictures.normal()
    rounds, seconds = (2, 4.0) if quick else (5, 10.0)
    with web(paths) as urls, graph() as server:
        measured = [_round(server, checkpoint, urls, paths, seconds) for _ in range(rounds)]
        latency = _latency(server, checkpoint, urls, 30 if quick else 150)
    return {"shape": described(Shape()), "clients": CLIENTS, "rounds": measured, "latency ms": latency}


def rows(result: Mapping[str, Any]) -> Table:
    """Throughput, CPU time per picture by process and by stage, and latencies of single requests."""
    rounds = result["rounds"]

    def line(name: str, values: Sequence[float], digits: int = 2) -> list[str]:
        return [name, f"{statistics.median(values):.{digits}f}", f"{min(values):.{digits}f} - {max(values):.{digits}f}"]

    table = [["", "median", "range"]]
    table.append(line("pictures per second", [one["rate"] for one in rounds], 0))
    table += [line(f"CPU ms: {group}", [one["cpu ms"][group] for one in rounds]) for group in GROUPS]
    table.append(line("CPU ms: all of serving", [_serving(one) for one in rounds]))
    table += [line(f"CPU ms: bare {stage}", [one["bare ms"][stage] for one in rounds]) for stage in PIPELINE]
    table.append(line("CPU ms: bare stages together", [_bare(one, "bare ms") for one in rounds]))
    table.append(line("CPU ms: bare stages, all cores busy", [_bare(one, "bare ms on all cores") for one in rounds]))
    table.append(line("efficiency", _efficiency(rounds, "bare ms")))
    table.append(line("efficiency against bare stages on all cores", _efficiency(rounds, "bare ms on all cores")))
    for name, runs in result["latency ms"].items():
        table.append([f"{name}, idle, p50 ms", f"{percentile(runs, 50):.1f}", f"{min(runs):.1f} - {max(runs):.1f}"])
        table.append([f"{name}, idle, p95 ms", f"{percentile(runs, 95):.1f}", ""])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """Efficiency is the CPU time of the bare stages over that of serving."""
    rounds = result["rounds"]
    return {
        "efficiency": _efficiency(rounds, "bare ms"),
        "efficiency_all_cores": _efficiency(rounds, "bare ms on all cores"),
        "images_per_second": [one["rate"] for one in rounds],
        "cpu_ms_per_image": [_serving(one) for one in rounds],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Two stacked bars: CPU time of the bare stages, and of serving."""
    rounds = result["rounds"]
    stages = {stage: statistics.median(one["bare ms"][stage] for one in rounds) for stage in PIPELINE}
    serving = {group: statistics.median(one["cpu ms"][group] for one in rounds) for group in GROUPS}
    for position, parts in (("bare stages", stages), ("serving", serving)):
        left = 0.0
        for name, value in parts.items():
            axes.barh(position, value, left=left)
            if value > 0.15:
                axes.text(left + value / 2, position, f"{name}\n{value:.1f}", ha="center", va="center", fontsize=8)
            left += value
    axes.set_xlabel("CPU ms per picture")


def _round(
    server: Running, checkpoint: models.Checkpoint, urls: Sequence[str], paths: Sequence[Path], seconds: float
) -> dict[str, Any]:
    meter = server.meter()
    alone = bare(checkpoint, urls, paths, seconds / 2)
    crowded = bare_on_all_cores(checkpoint, urls, paths, seconds / 2)
    served = closed_loop(marqo(server.url, checkpoint.properties), urls, CLIENTS, seconds, meter)
    return {
        "rate": served.rate,
        "cpu ms": {group: served.cpu_ms.get(group, 0.0) for group in GROUPS},
        "bare ms": alone,
        "bare ms on all cores": crowded,
    }


def _latency(server: Running, checkpoint: models.Checkpoint, urls: Sequence[str], count: int) -> dict[str, list[float]]:
    texts = queries(count)
    return {
        "one image": one_after_the_other(marqo(server.url, checkpoint.properties), urls, count),
        "one text": one_after_the_other(marqo(server.url, checkpoint.properties, "language", True), texts, count),
    }


def _serving(one: Mapping[str, Any]) -> float:
    """CPU milliseconds per picture of all processes of the server."""
    return float(sum(one["cpu ms"].values()))


def _bare(one: Mapping[str, Any], key: str) -> float:
    return float(sum(one[key].values()))


def _efficiency(rounds: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [_bare(one, key) / _serving(one) for one in rounds]


BENCHMARK = Benchmark(
    name="pipeline",
    title="End to end over HTTP URLs, small CLIP: pictures per second, CPU milliseconds per picture",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    by_default=True,
)
