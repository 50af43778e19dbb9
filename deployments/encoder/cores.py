"""The cores of a CPU that encodes: all of them for bulk work, but one fewer while there are searches."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from embedding.models.model import Pixels, Rows

SEARCHES_LAST_S = 10.0
"""After a search, others are expected for so long."""
PART = 8
"""Pictures that are worth a core of their own: fewer cost more for each."""


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
        self._others = ThreadPoolExecutor(max(1, count - 1), "core", initializer=torch.set_num_threads, initargs=(1,))

    @contextmanager
    def taken(self, urgent: bool) -> Iterator[int]:
        """Sets the calling thread's share for one forward pass.

        Yields:
            How many threads that is.
        """
        now = time.monotonic()
        if urgent:
            self._searched = now
            threads = 1 if self._bulk_runs else max(1, self._count - 1)
            torch.set_num_threads(threads)
            yield threads
            return
        searches = now - self._searched < SEARCHES_LAST_S
        threads = max(1, self._count - searches)
        torch.set_num_threads(threads)
        self._bulk_runs = True
        try:
            yield threads
        finally:
            self._bulk_runs = False

    def encode(self, encode: Callable[[Sequence[Pixels]], Rows], threads: int, pixels: Sequence[Pixels]) -> Rows:
        """Has each core encode a part of the pictures.

        Cores that share every matrix product of a small model wait for each other at each of them. With parts, they
        wait once.

        Args:
            encode: one forward pass; safe to run in several threads.
            threads: as `taken` yields it.
            pixels: arrays of pictures.

        Returns:
            One row for each picture, in order.
        """
        parts = min(threads, sum(map(len, pixels)) // PART)
        if parts < 2:
            return encode(pixels)
        torch.set_num_threads(1)
        own, *others = shares(pixels, parts)
        pending = [self._others.submit(encode, share) for share in others]
        return np.concatenate([encode(own), *(rows.result() for rows in pending)])


def shares(payloads: Sequence[Any], parts: int) -> list[list[Any]]:
    """The rows of several arrays or lists, in order, in `parts` shares of the same size but for one row; arrays are not
    copied."""
    total = sum(map(len, payloads))
    bounds = [total * part // parts for part in range(parts + 1)]
    return [list(_between(payloads, start, end)) for start, end in pairwise(bounds)]


def _between(payloads: Sequence[Any], start: int, end: int) -> Iterator[Any]:
    first = 0
    for payload in payloads:
        part = payload[max(0, start - first) : max(0, end - first)]
        if len(part):
            yield part
        first += len(payload)
