"""Two replicas that batch in different ways in front of the same simulated device, for `benchmarks/batching.py`.

The device is a thread that sleeps as long as a forward pass would take, so the speed of the machine does not matter.
Importing this module imports Ray: only processes that have Ray's environment may do it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import serve

from benchmarks.lib.percentiles import percentile
from embedding.batching import DeviceQueue, Job

MAX_BATCH = 32
BASE_S, ITEM_S = 0.020, 0.001
"""Seconds of a forward pass, and of each item in it."""
CAPACITY = MAX_BATCH / (BASE_S + ITEM_S * MAX_BATCH)
"""Items per second that the device can do at most."""
PLAIN_WAIT_S = 0.01
"""Serve's default `batch_wait_timeout_s`."""


@dataclass(slots=True)
class Item:
    """One item on its way through a replica.

    Args:
        arrived: when, in seconds.
        started: when its forward pass began.
        batch: how many items shared that pass.
    """

    arrived: float
    started: float = 0.0
    batch: int = 0


def forward(items: Sequence[Item]) -> list[Item]:
    """One forward pass of the device."""
    now = time.perf_counter()
    for item in items:
        item.started, item.batch = now, len(items)
    time.sleep(BASE_S + ITEM_S * len(items))
    return list(items)


async def arrivals(handle: Callable[[Item], Awaitable[Any]], load: float, seconds: float) -> dict[str, float]:
    """Sends items at random (Poisson) at a rate that does not depend on the answers.

    Args:
        handle: takes one item, and returns when it is done.
        load: the rate, over `CAPACITY`.
        seconds: for how long items are sent.

    Returns:
        The mean batch size, the mean and the 95th percentile of the waits between arrival and forward pass in
        milliseconds, and items per second.
    """
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


class WithDeviceQueue:
    """Batches as the encoder does: Serve's batching passes items on at once, and the device queue merges them."""

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


class WithServeBatch:
    """Batches as Serve's documentation shows it: the decorated method runs the whole batch."""

    def __init__(self) -> None:
        self._device = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=PLAIN_WAIT_S)
    async def _lane(self, items: list[Item]) -> list[Item]:
        return await asyncio.get_running_loop().run_in_executor(self._device, forward, items)

    async def measure(self, load: float, seconds: float) -> dict[str, float]:
        """See `arrivals`."""
        return await arrivals(self._lane, load, seconds)


def _forward_group(_: str, items: Sequence[Item]) -> Sequence[Item]:
    return forward(items)
