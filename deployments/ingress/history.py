"""The last minute's collections, and what has happened in it, measured when somebody asks and shared by all who do."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from deployments.ingress.growth import Collection, Growth

T = TypeVar("T")

FRESH_S = 1.0
"""For so long the same answer is given again."""
LEAST_S = 2.0
"""What is measured without an earlier collection: two of them, so far apart."""
WINDOW_S, OLDEST_S = 10.0, 60.0
"""Rates are over at least the first if there is a collection that old, and never over more than the second."""


class History:
    """Collections of the last `OLDEST_S`.

    Args:
        collect: makes a collection.
    """

    def __init__(self, collect: Callable[[], Awaitable[Collection]]) -> None:
        self._collect = collect
        self._kept: deque[Collection] = deque()

    async def growth(self) -> Growth:
        """What has happened since the latest collection that is at least `WINDOW_S` old, else since the oldest. The
        first answer, and one after a long pause, takes `LEAST_S` longer."""
        now = await self._collect()
        while self._kept and now.at - self._kept[0].at > OLDEST_S:
            self._kept.popleft()
        if not self._kept or now.at - self._kept[0].at < LEAST_S / 2:
            self._kept.append(now)
            await asyncio.sleep(LEAST_S)
            now = await self._collect()
        old_enough = [one for one in self._kept if now.at - one.at >= WINDOW_S]
        before = old_enough[-1] if old_enough else self._kept[0]
        self._kept.append(now)
        return Growth(before, now)


class Shared(Generic[T]):
    """A result that is made at most once in `FRESH_S`, and once for all who ask at the same time.

    Args:
        make: makes it. An exception is raised to all who wait, and the next one who asks has it made again.
    """

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self._done_at = 0.0

    async def get(self) -> T:
        """The result; whoever stops waiting for it does not cancel it for the others."""
        if self._task is None or (self._task.done() and self._is_stale(self._task)):
            self._task = asyncio.create_task(self._made())
        return await asyncio.shield(self._task)

    def _is_stale(self, task: asyncio.Task[T]) -> bool:
        failed = task.cancelled() or task.exception() is not None
        return failed or asyncio.get_running_loop().time() - self._done_at > FRESH_S

    async def _made(self) -> T:
        try:
            return await self._make()
        finally:
            self._done_at = asyncio.get_running_loop().time()
