"""Our work-conserving queue against plain `@serve.batch`: batch sizes and waits at several loads, in real replicas.

The device is a thread that sleeps as long as a forward pass would take, so that the machine's speed does not matter.
Items arrive at random (Poisson), at a rate that does not depend on the answers, inside the replica: what is compared is
the batching, not the handles.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray import serve

from benchmarks.latency import percentile
from embedding.batching import DeviceQueue, Job

NAME = "batching"
TITLE = "Batching: our queue against plain @serve.batch (device: 20 ms + 1 ms per item, batches up to 32)"
LOADS = (0.1, 0.5, 1.0, 2.0)
MAX_BATCH = 32
BASE_S, ITEM_S = 0.020, 0.001
CAPACITY = MAX_BATCH / (BASE_S + ITEM_S * MAX_BATCH)
"""Items per second that the device can do at most."""
PLAIN_WAIT_S = 0.01
"""Serve's default `batch_wait_timeout_s`."""


@dataclass(slots=True)
class Item:
    """Args:
    arrived: when, in seconds.
    started: when its forward pass began.
    batch: how many items shared that pass.
    """

    arrived: float
    started: float = 0.0
    batch: int = 0


def forward(items: Sequence[Item]) -> Sequence[Item]:
    """One pass of the device."""
    now = time.perf_counter()
    for item in items:
        item.started, item.batch = now, len(items)
    time.sleep(BASE_S + ITEM_S * len(items))
    return items


async def arrivals(handle: Callable[[Item], Awaitable[Any]], load: float, seconds: float) -> dict[str, float]:
    """Sends items for `seconds`; mean batch size, and waits between arrival and forward pass in milliseconds."""
    import numpy as np

    gaps = np.random.default_rng(1).exponential(1 / (load * CAPACITY), int(load * CAPACITY * seconds))
    items, tasks = [], []
    due = time.perf_counter()
    for gap in gaps:
        due += gap
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        items.append(Item(due))
        tasks.append(asyncio.ensure_future(handle(items[-1])))
    await asyncio.gather(*tasks)
    waits = [1000 * (item.started - item.arrived) for item in items]
    passes = len({item.started for item in items})
    lasted = max(item.started for item in items) - items[0].arrived
    return {
        "mean batch": len(items) / passes,
        "mean wait": statistics.mean(waits),
        "p95 wait": percentile(waits, 95),
        "items per second": len(items) / lasted,
    }


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Ours:
    """As in the encoder: Serve's batching hands over at once, merging goes on in the device queue."""

    def __init__(self) -> None:
        executor = ThreadPoolExecutor(1)
        self._queue = DeviceQueue(_forward_group, executor, lane_of=str, max_items={"image": MAX_BATCH})

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0)
    async def _lane(self, items: list[Item]) -> list[asyncio.Future[Any]]:
        return [self._queue.put(Job("image", item, 1)) for item in items]

    async def _one(self, item: Item) -> None:
        await (await self._lane(item))

    async def measure(self, load: float, seconds: float) -> dict[str, float]:
        """See `arrivals`."""
        return await arrivals(self._one, load, seconds)


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Plain:
    """As Serve's docs show it: the handler runs the batch."""

    def __init__(self) -> None:
        self._device = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=PLAIN_WAIT_S)
    async def _lane(self, items: list[Item]) -> Sequence[Item]:
        return await asyncio.get_running_loop().run_in_executor(self._device, forward, items)

    async def measure(self, load: float, seconds: float) -> dict[str, float]:
        """See `arrivals`."""
        return await arrivals(self._lane, load, seconds)


def _forward_group(_: str, items: Sequence[Item]) -> Sequence[Item]:
    return forward(items)


def measure(quick: bool) -> dict[str, Any]:
    """Rounds of both at every load, in alternation."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return {"measured": one.submit(_measure, 1 if quick else 2, 2.0 if quick else 5.0).result()}


def _measure(rounds: int, seconds: float) -> list[dict[str, Any]]:
    import ray

    from deployments.ray_internals import for_this_thread

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, namespace="serve")
    try:
        handles = {
            "ours": serve.run(Ours.bind(), name="ours", route_prefix=None),
            "plain": serve.run(Plain.bind(), name="plain", route_prefix=None),
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
        serve.shutdown()
        ray.shutdown()


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A table: header first."""
    keys = ("mean batch", "mean wait", "p95 wait", "items per second")
    table = [["load", "batching", "mean batch", "mean wait, ms", "p95 wait, ms", "items/s"]]
    for load in LOADS:
        for way in ("ours", "plain"):
            values = [f"{_median(result, load, way, key):.1f}" for key in keys]
            table.append([f"{load:.0%}", {"plain": "@serve.batch"}.get(way, way), *values])
    return table


def summary(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Figures of the summary: plain wait over ours at half load, and batch sizes at full load."""

    def runs(load: float, way: str, key: str) -> list[float]:
        return [one[key] for one in result["measured"] if (one["load"], one["way"]) == (load, way)]

    waits = zip(runs(0.5, "plain", "mean wait"), runs(0.5, "ours", "mean wait"), strict=True)
    sizes = zip(runs(1.0, "ours", "mean batch"), runs(1.0, "plain", "mean batch"), strict=True)
    return {
        "batching_wait_ratio_half_load": [plain / ours for plain, ours in waits],
        "batching_size_ratio_full_load": [ours / plain for ours, plain in sizes],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Mean waits, with mean batch sizes on the bars."""
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
    chosen = [one[key] for one in result["measured"] if (one["load"], one["way"]) == (load, way)]
    return statistics.median(chosen)
