"""The cores of a CPU that encodes: all of them for bulk work, but one fewer while there are searches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SEARCHES_LAST_S = 10.0
"""After a search, others are expected for so long."""


class Cores:
    """Divides them between bulk work and searches, each of which runs in a thread of its own.

    Where bulk work took all of two cores, the p95 of searches beside it was 196 ms, otherwise 84 to 113 ms. Where a
    search alone took both, its own p95 was 34 ms instead of 19: a forward pass waits for its slowest core.

    Args:
        count: threads of a forward pass that has them to itself.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._searched = float("-inf")
        self._bulk_runs = False

    @contextmanager
    def taken(self, urgent: bool) -> Iterator[None]:
        """Sets the calling thread's share for one forward pass."""
        now = time.monotonic()
        if urgent:
            self._searched = now
            torch.set_num_threads(1 if self._bulk_runs else max(1, self._count - 1))
            yield
            return
        searches = now - self._searched < SEARCHES_LAST_S
        torch.set_num_threads(max(1, self._count - searches))
        self._bulk_runs = True
        try:
            yield
        finally:
            self._bulk_runs = False
