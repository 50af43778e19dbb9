"""A job of more rows than a batch may have: it runs in several passes, none of which is larger than the maximum."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from embedding.batching import DeviceQueue, Job

MAXIMUM = 4


class Device:
    """Doubles numbers, and keeps the sizes of its passes. One with a negative number fails; one of more rows than
    `fits` does not fit into its memory."""

    def __init__(self, fits: int = 100) -> None:
        self.fits = fits
        self.passes: list[int] = []

    def run(self, group: str, payloads: Sequence[Any]) -> list[Any]:
        rows = np.concatenate([np.asarray(payload, np.float32) for payload in payloads])
        self.passes.append(len(rows))
        if len(rows) > self.fits:
            raise MemoryError
        if (rows < 0).any():
            raise ValueError("negative")
        return np.split(2 * rows, np.cumsum([len(payload) for payload in payloads])[:-1])


def results(device: Device, *payloads: Any, max_items: dict[str, int] | None = None) -> list[Any]:
    """What a queue in front of the device gives for jobs that are put together."""

    async def main() -> list[Any]:
        with ThreadPoolExecutor(1) as executor:
            queue = DeviceQueue(device.run, executor, lane_of=str, max_items=max_items or {"a": MAXIMUM})
            futures = [queue.put(Job("a", payload, len(payload))) for payload in payloads]
            return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)

    return asyncio.run(main())


@pytest.mark.parametrize("make", [np.array, torch.tensor, list], ids=["array", "tensor", "list"])
@pytest.mark.parametrize(("count", "passes"), [(4, [4]), (5, [4, 1]), (8, [4, 4]), (11, [4, 4, 3])])
def test_no_pass_is_larger_than_the_maximum(make: Callable[[list[float]], Any], count: int, passes: list[int]) -> None:
    device = Device()
    (rows,) = results(device, make([float(i) for i in range(count)]))
    assert device.passes == passes
    assert rows.tolist() == [2 * i for i in range(count)]


def test_jobs_beside_it_run_whole() -> None:
    device = Device()
    rows = results(device, [1.0, 2.0], [float(i) for i in range(9)], [3.0, 4.0])
    assert device.passes == [4, 4, 4, 1]
    assert [each.tolist() for each in rows] == [[2, 4], [2 * i for i in range(9)], [6, 8]]


@pytest.mark.parametrize("position", [0, 5, 8])
def test_a_part_that_fails_fails_the_job_alone_and_at_once(position: int) -> None:
    device = Device()
    poisoned = [1.0] * 9
    poisoned[position] = -1.0
    failed, rows = results(device, poisoned, [3.0])
    assert isinstance(failed, ValueError)
    assert rows.tolist() == [6]
    assert device.passes == [*[4, 4, 1][: position // MAXIMUM + 1], 1]


def test_a_part_that_does_not_fit_into_memory_is_halved() -> None:
    device = Device(fits=2)
    (rows,) = results(device, [float(i) for i in range(7)])
    assert rows.tolist() == [2 * i for i in range(7)]
    assert device.passes == [4, 2, 2, 3, 2, 1]


class Lowered(dict[str, int]):
    """Maxima that are lowered to 2 as soon as they have been read once."""

    def __getitem__(self, lane: str) -> int:
        most = super().__getitem__(lane)
        self[lane] = 2
        return most


def test_a_maximum_that_is_lowered_meanwhile_holds_from_the_next_batch_on() -> None:
    """A batch that has been formed already runs as it is."""
    device = Device()
    rows = results(device, [1.0, 2.0, 3.0], [4.0], [5.0, 6.0, 7.0], max_items=Lowered(a=MAXIMUM))
    assert device.passes == [4, 2, 1]
    assert [each.tolist() for each in rows] == [[2, 4, 6], [8], [10, 12, 14]]
