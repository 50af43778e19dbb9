"""A device whose memory is too small for a batch: the same error as CUDA's, raised by a real forward pass of numpy."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from deployments.encoder import as_far_as_memory_goes
from embedding.errors import Fault, RequestError


class Tensors:
    """What a pass has taken of the device's memory."""


def device(rows_that_fit: int, passes: list[int]) -> Callable[[Sequence[Any]], np.ndarray]:
    """A device on which a pass that fails goes on to hold memory for as long as anybody holds its frame."""
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


@pytest.mark.parametrize("payloads", [[np.arange(16)[:, None]], [[[0], [1], [2]], [[3]]], [np.arange(5)[:, None]] * 3])
def test_batches_are_halved_until_they_fit(payloads: list[Any]) -> None:
    passes: list[int] = []
    rows = as_far_as_memory_goes(device(4, passes), payloads)
    np.testing.assert_array_equal(rows, 2 * np.concatenate([np.asarray(one, np.float32) for one in payloads]))
    assert sum(size for size in passes if size <= 4) == len(rows)


def test_what_fits_is_one_pass() -> None:
    passes: list[int] = []
    as_far_as_memory_goes(device(16, passes), [np.zeros((9, 2)), np.zeros((7, 2))])
    assert passes == [16]


def test_a_single_content_that_does_not_fit_is_no_failure_of_the_server() -> None:
    with pytest.raises(RequestError, match="memory") as caught:
        as_far_as_memory_goes(device(0, []), [np.zeros((3, 2))])
    assert caught.value.fault is Fault.OVERLOADED
