"""Pictures per second with 1, 2, 4 and 8 preprocessors, and how many of each part a given rate takes.

Each preprocessor downloads at most eight pictures at a time from a host that answers after a quarter of a second, so
that it gives 32 pictures per second at most and leaves most of a core idle. The encoder's model costs next to nothing.
So two cores suffice to see whether the server itself grows with the number of its preprocessors: throughput over that
of one preprocessor and their number is 1 if nothing else is in the way. With eight of them the cores are full.

The table of sizes is arithmetic, from the CPU time of each part per picture when the host answers at once and all cores
are busy. Encoders are not in it: a device's own rate decides their number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.load import closed_loop, once
from benchmarks.lib.server import Running, Shape, described, graph
from benchmarks.lib.target import Target, marqo
from benchmarks.lib.web import misbehaving

PREPROCESSORS = (1, 2, 4, 8)
DELAY_S = 0.25
DOWNLOADS = 8
"""Of one preprocessor at a time."""
CLIENTS = 4
"""For each preprocessor: 128 pictures, so that no download slot waits for a request."""
RATES = (1_000, 10_000, 100_000)
"""Pictures per second of the table of sizes."""
FULL = 0.7
"""Share of a core at which a process that answers requests counts as full: above it queues grow long."""
PARTS = {"preprocessor": "Preprocessor", "ingress": "Ingress", "proxy": "HAProxy", "ray": "Ray's own processes"}
"""Groups of the server's processes, and their names in the table."""


def measure(quick: bool) -> Result:
    """Of each number of preprocessors the throughput and the CPU time per picture in some rounds."""
    rounds, seconds = (1, 5.0) if quick else (3, 12.0)
    checkpoint, paths = models.tiny_clip(), pictures.normal()
    with misbehaving(paths[0].parent) as port:
        urls = [f"http://127.0.0.1:{port}/ok/{path.name}?delay={DELAY_S}" for path in paths]
        # Rounds outside: what else the machine does meanwhile meets all numbers alike.
        measured = [
            {"preprocessors": count, **_measured(count, checkpoint.properties, urls, seconds)}
            for _ in range(rounds)
            for count in PREPROCESSORS
        ]
        costs = _costs(checkpoint.properties, [url.partition("?")[0] for url in urls], seconds)
    size = statistics.mean(path.stat().st_size for path in paths)
    return {
        "shape": described(_shape(1)),
        "delay s": DELAY_S,
        "picture bytes": size,
        "measured": measured,
        "cost ms": costs,
    }


def rows(result: Mapping[str, Any]) -> Table:
    """Throughput and growth by number of preprocessors; then the parts that each rate takes."""
    table = [["preprocessors", "pictures per second", "times that of one, for each", "cores in use"]]
    for count in PREPROCESSORS:
        busy = statistics.median(one["rate"] * sum(one["cpu ms"].values()) / 1000 for one in _of(result, count))
        table.append([str(count), f"{_rate(result, count):.0f}", f"{growth(result, count):.2f}", f"{busy:.2f}"])
    table.append(["", "", "", ""])
    table.append(["part", *(f"at {rate:,} pictures per second" for rate in RATES)])
    for group, name in PARTS.items():
        cells = [f"{cores(result, group, rate):.1f} cores" for rate in RATES]
        table.append([f"{name}: {result['cost ms'][group]:.2f} ms each", *cells])
    table.append(["Ingress: replicas", *(str(processes(result, "ingress", rate)) for rate in RATES)])
    table.append(["HAProxy: nodes", *(str(processes(result, "proxy", rate)) for rate in RATES)])
    gigabits = 8 * result["picture bytes"] / 1e9
    table.append(["downloads", *(f"{rate * gigabits:.1f} Gbit/s" for rate in RATES)])
    return table


def growth(result: Mapping[str, Any], count: int) -> float:
    """Throughput of `count` preprocessors over `count` times that of one."""
    return _rate(result, count) / count / _rate(result, 1)


def cores(result: Mapping[str, Any], group: str, rate: float) -> float:
    """How many cores a group of processes uses at a rate of pictures per second."""
    return float(rate * result["cost ms"][group] / 1000)


def processes(result: Mapping[str, Any], group: str, rate: float) -> int:
    """How many processes of one thread each it takes, so that none is full."""
    return max(1, math.ceil(cores(result, group, rate) / FULL))


def summary(result: Mapping[str, Any]) -> Figures:
    """Growth from one preprocessor to two and to four."""
    return {f"scaling_growth_{count}": [growth(result, count)] for count in PREPROCESSORS[1:-1]}


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Throughput by number of preprocessors, beside a straight line."""
    axes.plot(PREPROCESSORS, [count * _rate(result, 1) for count in PREPROCESSORS], ":", color="grey", label="linear")
    axes.plot(PREPROCESSORS, [_rate(result, count) for count in PREPROCESSORS], "o-", label="measured")
    axes.set_xlabel("preprocessors")
    axes.set_ylabel("pictures per second")
    axes.set_xticks(PREPROCESSORS)
    axes.grid(alpha=0.3)
    axes.legend()


def _shape(count: int) -> Shape:
    return Shape(preprocessors=count, decode_threads=1, encoder_threads=1, fetch={"max_concurrency": DOWNLOADS})


def _measured(count: int, properties: Mapping[str, Any], urls: Sequence[str], seconds: float) -> dict[str, Any]:
    with graph(_shape(count)) as server:
        target = marqo(server.url, properties)
        _wake(target, urls, count)
        return _throughput(server, target, urls, CLIENTS * count, seconds)


def _costs(properties: Mapping[str, Any], urls: Sequence[str], seconds: float) -> dict[str, float]:
    """CPU milliseconds per picture by group of processes, of a busy server of the usual shape."""
    with graph() as server:
        target = marqo(server.url, properties)
        once(target, urls[:1])
        cpu_ms = _throughput(server, target, urls, CLIENTS, seconds)["cpu ms"]
    return {group: cpu_ms.get(group, 0.0) for group in PARTS}


def _wake(target: Target, urls: Sequence[str], count: int) -> None:
    """Loads the model, and lets every preprocessor learn that the host takes as many requests as it may send."""
    once(target, urls[:1])
    closed_loop(target, urls, CLIENTS * count, 1.0)


def _throughput(server: Running, target: Target, urls: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    served = closed_loop(target, urls, clients, seconds, server.meter())
    return {"rate": served.rate, "cpu ms": served.cpu_ms}


def _of(result: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    return [one for one in result["measured"] if one["preprocessors"] == count]


def _rate(result: Mapping[str, Any], count: int) -> float:
    return float(statistics.median(one["rate"] for one in _of(result, count)))


BENCHMARK = Benchmark(
    name="scaling",
    title="Growth with the number of preprocessors, and the parts that a rate takes",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
)
