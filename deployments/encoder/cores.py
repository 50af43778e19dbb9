"""Divides CPU cores between forward passes: bulk work gets all of them, or one fewer while there are searches."""

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
"""How long after a search one core stays free for the next one."""
PART = 8
"""Least number of pictures for each core: with fewer, each picture costs more."""


class Cores:
    """Divides the cores between bulk work and searches, each of which runs in a thread of its own.

    If bulk work takes both of two cores, the p95 of concurrent searches is 196 ms, otherwise 84 to 113 ms. If a search
    takes both, its own p95 is 34 ms instead of 19: a forward pass waits for its slowest core.

    Args:
        count: threads of a forward pass that runs alone.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._searched = float("-inf")
        self._bulk_runs = False
        self._others = ThreadPoolExecutor(max(1, count - 1), "core", initializer=torch.set_num_threads, initargs=(1,))

    @contextmanager
    def taken(self, urgent: bool) -> Iterator[int]:
        """Sets the number of torch threads of the calling thread for one forward pass.

        Args:
            urgent: whether the pass is a search.

        Yields:
            The number of threads.
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
        """Encodes a part of the pictures on each core.

        If cores share every matrix product of a small model, they wait for each other at each product. With a part of
        the pictures for each, they wait once.

        Args:
            encode: one forward pass; safe to run in several threads.
            threads: as yielded by `taken`.
            pixels: arrays of shape (n, 3, height, width).

        Returns:
            One row for each picture, in order.
        """
        parts = min(threads, sum(map(len, pixels)) // PART)
        if parts < 2:
            return encode(pixels)
        torch.set_num_threads(1)
        own, *others = split_rows(pixels, parts)
        pending = [self._others.submit(encode, part) for part in others]
        return np.concatenate([encode(own), *(rows.result() for rows in pending)])


def split_rows(payloads: Sequence[Any], parts: int) -> list[list[Any]]:
    """The rows of several arrays or lists, in order, in `parts` parts whose sizes differ by at most one row; arrays are
    not copied."""
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
