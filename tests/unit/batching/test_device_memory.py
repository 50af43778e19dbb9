"""A device whose memory is too small for a batch: the same error as CUDA's, raised by a real forward pass of numpy."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from embedding.batching import DeviceQueue, Job


class Tensors:
    """What a pass has taken of the device's memory."""


def device(rows_that_fit: int, passes: list[int]) -> Callable[[Sequence[Any]], np.ndarray]:
    """A device on which a pass that fails goes on to hold memory for as long as its frame is referenced."""
    held: list[weakref.ref[Tensors]] = []

    def encode(payloads: Sequence[Any]) -> np.ndarray:
        assert not any(reference() for reference in held), "a failed pass still holds memory"
        rows = np.concatenate([np.asarray(payload, np.float32) for payload in payloads])
        passes.append(len(rows))
        tensors = Tensors()
        held.append(weakref.ref(tensors))
        if len(rows) > rows_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * rows

    return encode


@pytest.fixture(autouse=True)
def _no_collector() -> Any:
    """Memory must come back by itself, and not when Python happens to look for circles."""
    gc.disable()
    yield
    gc.enable()


async def outcomes(rows_that_fit: int, passes: list[int], payloads: Sequence[Any]) -> list[Any]:
    """What a queue in front of such a device gives for jobs that are put together."""
    forward = device(rows_that_fit, passes)

    def run(group: str, batch: Sequence[Any]) -> list[np.ndarray]:
        return np.split(forward(batch), np.cumsum([len(one) for one in batch])[:-1])

    with ThreadPoolExecutor(1) as executor:
        queue = DeviceQueue(run, executor, lane_of=str, max_items={"image": 100}, memory_error=torch.OutOfMemoryError)
        jobs = [queue.put(Job("image", payload, len(payload), False)) for payload in payloads]
        return await asyncio.gather(*jobs, return_exceptions=True)


@pytest.mark.parametrize("payloads", [[np.arange(16)[:, None]], [[[0], [1], [2]], [[3]]], [np.arange(5)[:, None]] * 3])
def test_batches_are_halved_until_they_fit(payloads: list[Any]) -> None:
    passes: list[int] = []
    rows = asyncio.run(outcomes(4, passes, payloads))
    for got, payload in zip(rows, payloads, strict=True):
        np.testing.assert_array_equal(got, 2 * np.asarray(payload, np.float32))
    assert sum(size for size in passes if size <= 4) == sum(map(len, payloads))


def test_what_fits_is_one_pass() -> None:
    passes: list[int] = []
    asyncio.run(outcomes(16, passes, [np.zeros((9, 2)), np.zeros((7, 2))]))
    assert passes == [16]


def test_a_single_item_that_does_not_fit_fails_alone() -> None:
    passes: list[int] = []
    (failed,) = asyncio.run(outcomes(0, passes, [np.zeros((3, 2))]))
    assert isinstance(failed, torch.OutOfMemoryError)
    assert failed.__traceback__ is None or failed.__traceback__.tb_frame.f_code.co_name == "outcomes"
