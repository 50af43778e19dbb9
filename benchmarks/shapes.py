"""Chunk sizes and numbers of replicas and threads, compared: the reason for the defaults of `Shape`.

It has no figures in the summary: its result is a choice.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Result, Table
from benchmarks.lib.load import closed_loop
from benchmarks.lib.server import Shape, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.web import web

REQUEST = 32
"""Items of one request: a chunk cannot be larger."""
SHAPES = {
    "chunks of 8": Shape(image_chunk=8),
    "chunks of 16": Shape(image_chunk=16),
    "chunks of 32 (as everywhere else)": Shape(),
    "batches of up to 64": Shape(max_image_batch=64),
    "1 decode thread": Shape(decode_threads=1),
    "3 decode threads": Shape(decode_threads=3),
    "2 preprocessors, 1 decode thread each": Shape(preprocessors=2, decode_threads=1),
    "2 encoders": Shape(encoders=2),
    "1 encoder thread": Shape(encoder_threads=1),
}
CLIENTS = 4


def measure(quick: bool) -> Result:
    """Every shape in turn, round after round: `{"shapes": {name: [{"rate", "cpu ms"}, ...]}}`."""
    rounds, seconds = (1, 4.0) if quick else (2, 6.0)
    checkpoint, paths = models.small_clip(), pictures.normal()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SHAPES}
    with web(paths) as urls:
        for _ in range(rounds):
            for name, shape in SHAPES.items():
                runs[name].append(_run(shape, checkpoint, urls, seconds))
                print(f"  {name}: {runs[name][-1]['rate']:.0f} pictures/s", flush=True)
    return {"clients": CLIENTS, "request": REQUEST, "shapes": runs}


def rows(result: Mapping[str, Any]) -> Table:
    """Throughput and CPU time of each shape."""
    table = [["shape", "pictures/s", "range", "CPU ms per picture"]]
    for name, runs in result["shapes"].items():
        rates = [run["rate"] for run in runs]
        cpu = statistics.median(run["cpu ms"] for run in runs)
        spread = f"{min(rates):.0f} - {max(rates):.0f}"
        table.append([name, f"{statistics.median(rates):.0f}", spread, f"{cpu:.2f}"])
    return table


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """A bar for each shape, with every run as a dot."""
    names = list(result["shapes"])[::-1]
    rates = [[run["rate"] for run in result["shapes"][name]] for name in names]
    bars = axes.barh(names, [statistics.median(one) for one in rates])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    for position, one in enumerate(rates):
        axes.plot(one, [position] * len(one), "k.", markersize=4)
    axes.set_xlabel("pictures per second")


def _run(shape: Shape, checkpoint: models.Checkpoint, urls: Sequence[str], seconds: float) -> dict[str, float]:
    with graph(shape) as server:
        target = marqo(server.url, checkpoint.properties)
        closed_loop(target, urls, CLIENTS, 2.0)  # the model is loaded on the first request
        served = closed_loop(target, urls, CLIENTS, seconds, server.meter())
    return {"rate": served.rate, "cpu ms": sum(served.cpu_ms.values())}


BENCHMARK = Benchmark(
    name="shapes",
    title="Chunk sizes and shapes of the graph, small CLIP: pictures per second, CPU milliseconds per picture",
    measure=measure,
    rows=rows,
    draw=draw,
    by_default=True,
)
