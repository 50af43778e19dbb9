"""Our work-conserving queue against plain `@serve.batch`: batch sizes and waits at several loads, in real replicas.

Items arrive inside the replica: what is compared is the batching, not Serve's handles.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.lib.bare import processes
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table

LOADS = (0.1, 0.5, 1.0, 2.0)
"""Over the device's capacity."""


def measure(quick: bool) -> Result:
    """Rounds of both at every load, in alternation."""
    with processes(1) as one:
        return {"measured": one.submit(_measure, 1 if quick else 2, 2.0 if quick else 5.0).result()}


def _measure(rounds: int, seconds: float) -> list[dict[str, Any]]:
    import ray
    from ray import serve

    from benchmarks.lib.batching_replicas import WithDeviceQueue, WithServeBatch
    from deployments.ray_internals import for_this_thread

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, namespace="serve")
    try:
        deployment = serve.deployment(ray_actor_options={"num_cpus": 0})
        handles = {
            "ours": serve.run(deployment(WithDeviceQueue).bind(), name="ours", route_prefix=None),
            "plain": serve.run(deployment(WithServeBatch).bind(), name="plain", route_prefix=None),
        }
        for handle in handles.values():
            # This process runs Serve in its throughput mode, whose handles need an event loop to run on.
            for_this_thread(handle)
        return [
            {"load": load, "way": way, **handle.measure.remote(load, seconds).result()}
            for _ in range(rounds)
            for load in LOADS
            for way, handle in handles.items()
        ]
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def rows(result: Mapping[str, Any]) -> Table:
    """Medians of all rounds, at each load."""
    keys = ("mean batch", "mean wait", "p95 wait", "items per second")
    table = [["load", "batching", "mean batch", "mean wait, ms", "p95 wait, ms", "items/s"]]
    for load in LOADS:
        for way in ("ours", "plain"):
            values = [f"{_median(result, load, way, key):.1f}" for key in keys]
            table.append([f"{load:.0%}", {"plain": "@serve.batch"}.get(way, way), *values])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """The plain wait over ours at half load, and our batch size over the plain one at full load."""
    waits = zip(_runs(result, 0.5, "plain", "mean wait"), _runs(result, 0.5, "ours", "mean wait"), strict=True)
    sizes = zip(_runs(result, 1.0, "ours", "mean batch"), _runs(result, 1.0, "plain", "mean batch"), strict=True)
    return {
        "batching_wait_ratio_half_load": [plain / ours for plain, ours in waits],
        "batching_size_ratio_full_load": [ours / plain for ours, plain in sizes],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Mean waits as bars, with mean batch sizes on them."""
    for offset, way in ((-0.2, "ours"), (0.2, "plain")):
        waits = [_median(result, load, way, "mean wait") for load in LOADS]
        bars = axes.bar([i + offset for i in range(len(LOADS))], waits, 0.38, label=way)
        sizes = [f"{_median(result, load, way, 'mean batch'):.1f}" for load in LOADS]
        axes.bar_label(bars, sizes, fontsize=8)
    axes.set_xticks(range(len(LOADS)), [f"{load:.0%}" for load in LOADS])
    axes.set_yscale("log")
    axes.set_xlabel("load (on the bars: mean batch)")
    axes.set_ylabel("mean wait for the device, ms")
    axes.legend()


def _median(result: Mapping[str, Any], load: float, way: str, key: str) -> float:
    return statistics.median(_runs(result, load, way, key))


def _runs(result: Mapping[str, Any], load: float, way: str, key: str) -> list[float]:
    return [one[key] for one in result["measured"] if (one["load"], one["way"]) == (load, way)]


BENCHMARK = Benchmark(
    name="batching",
    title="Batching: our queue against plain @serve.batch (device: 20 ms + 1 ms per item, batches up to 32)",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    by_default=True,
)
