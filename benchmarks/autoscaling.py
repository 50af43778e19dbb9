"""Preprocessors and encoders that grow from one to many and back, under a load that rises and falls.

Pictures come from a host that answers after a second, so that many chunks wait in the preprocessors; texts come in
requests of 128, so that many chunks wait in the encoders. Neither fills the cores. Every answer is compared with the
vectors that the idle server gave: a replica that goes must not cost any request its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.cluster import Victims
from benchmarks.lib.offered import Ask, Phase, asked, offer
from benchmarks.lib.percentiles import percentile
from benchmarks.lib.server import Shape, described, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.watch import sampling
from benchmarks.lib.web import misbehaving

DELAY_S = 1.0
PICTURES, TEXTS = 16, 128
"""Items of one request."""
LOW = {"pictures": 0.5, "texts": 0.25}
HIGH = {"pictures": 4.0, "texts": 1.5}
"""Requests per second."""
PHASES = (("before", LOW), ("high", HIGH), ("after", LOW))
SCALED = ("Preprocessor", "Encoder")
EVERY_S = 0.5


def measure(quick: bool) -> Result:
    """Replicas over time, and what became of the requests of each phase."""
    seconds = {"before": 10.0, "high": 40.0, "after": 45.0} if quick else {"before": 20.0, "high": 90.0, "after": 90.0}
    checkpoint, paths = models.small_clip(), pictures.normal(PICTURES)
    phases = [Phase(name, rates, seconds[name]) for name, rates in PHASES]
    with misbehaving(paths[0].parent) as port, graph(_shape()) as server:
        urls = [f"http://127.0.0.1:{port}/ok/{path.name}?delay={DELAY_S}" for path in paths]
        asks = _asks(server.url, checkpoint.properties, urls)
        processes = Victims(server.pid, server.url)
        with sampling(lambda: _replicas(processes), EVERY_S) as samples:
            offered = offer(asks, phases)
    started = offered[0]["started"]
    for sample in samples:
        sample["at"] -= started
    return {
        "shape": described(_shape()),
        "phases": [_phase(one, samples, one["started"] - started) for one in offered],
        "samples": samples,
    }


def rows(result: Mapping[str, Any]) -> Table:
    """A line for each phase: replicas at its beginning, most of them, and at its end; requests and latencies."""
    header = ["load", *(f"{name}s, first, most, last" for name in SCALED), "requests", "right", "others", "p95 ms"]
    return [header, *(_row(phase) for phase in result["phases"])]


def summary(result: Mapping[str, Any]) -> Figures:
    """Requests that were not answered rightly, and the most replicas of each deployment."""
    phases = result["phases"]
    most = {f"autoscaling_most_{name}s".lower(): [float(max(max(one[name]) for one in phases))] for name in SCALED}
    return {"autoscaling_not_right": [float(sum(map(_not_right, phases)))], **most}


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Replicas over time."""
    samples = [one for one in result["samples"] if one["at"] >= 0]
    for name in SCALED:
        axes.step([one["at"] for one in samples], [one[name] for one in samples], where="post", label=f"{name}s")
    for phase in result["phases"]:
        axes.axvline(phase["from"], color="grey", linestyle=":")
        axes.annotate(f" {phase['name']}", (phase["from"], 1.0), xycoords=("data", "axes fraction"), va="top")
    axes.set_xlabel("seconds")
    axes.set_ylabel("replicas")
    axes.grid(alpha=0.3)
    axes.legend()


def verdict(result: Mapping[str, Any]) -> str:
    """Says so if a request was not answered rightly, or if the deployments did not grow and shrink."""
    others = sum(map(_not_right, result["phases"]))
    still = [name for name in SCALED if max(result["phases"][1][name]) < 2 or result["phases"][-1][name][-1] != 1]
    if others:
        return f"{others} requests were not answered rightly"
    return f"did not grow and shrink: {', '.join(still)}" if still else ""


def _shape() -> Shape:
    scaling = {"Preprocessor": _scaling(4, 6), "Encoder": _scaling(3, 3)}
    return Shape(image_chunk=4, decode_threads=1, encoder_threads=1, ingress={"text_chunk": 16}, autoscaling=scaling)


def _scaling(most: int, target: float) -> dict[str, Any]:
    return {
        "min_replicas": 1,
        "max_replicas": most,
        "target_ongoing_requests": target,
        "upscale_delay_s": 2,
        "downscale_delay_s": 5,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 4,
    }


def _asks(url: str, properties: Mapping[str, Any], urls: Sequence[str]) -> list[Ask]:
    texts = [f"text number {i} of many, long enough to cost the encoder something" for i in range(TEXTS)]
    return [
        asked("pictures", marqo(url, properties), urls),
        asked("texts", marqo(url, properties, "language"), texts),
    ]


def _replicas(processes: Victims) -> dict[str, Any]:
    """How many processes of replicas there are, those that start or drain too."""
    return {name: len(processes.replicas(name)) for name in SCALED}


def _phase(offered: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], start: float) -> dict[str, Any]:
    within = [one for one in samples if start <= one["at"] < start + offered["seconds"]]
    outcomes = offered["outcomes"]
    return {
        "name": offered["name"],
        "from": start,
        **{name: [one[name] for one in within] for name in SCALED},
        "verdicts": dict(Counter(one.verdict for one in outcomes)),
        "ms": [1000 * one.latency for one in outcomes],
    }


def _not_right(phase: Mapping[str, Any]) -> int:
    return sum(count for verdict, count in phase["verdicts"].items() if verdict != "right")


def _row(phase: Mapping[str, Any]) -> list[str]:
    sent, others = len(phase["ms"]), _not_right(phase)
    sizes = [f"{phase[name][0]}, {max(phase[name])}, {phase[name][-1]}" for name in SCALED]
    return [phase["name"], *sizes, str(sent), str(sent - others), str(others), f"{percentile(phase['ms'], 95):.0f}"]


BENCHMARK = Benchmark(
    name="autoscaling",
    title="Replicas that come and go under a load that rises and falls",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    verdict=verdict,
)
