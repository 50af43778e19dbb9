"""Tracks the items of a chunk: which wait for downloads, and which are ready to be returned together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

FIRST_S = 0.25
"""Nearly all chunks are complete after this time, and are returned in one part."""
PAUSE_S = 0.5
"""From the first item that is ready until a part is returned: each part costs a message and a forward pass."""


class Progress(Generic[T]):
    """The items of one chunk. Belongs to one event loop.

    Args:
        count: items of the chunk; all of them wait for their downloads at first.
    """

    def __init__(self, count: int) -> None:
        self._waiting = set(range(count))
        self._unfinished = count
        self._ready: dict[int, T] = {}
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()

    def arrived(self, index: int) -> None:
        """Notes that an item's download has ended."""
        self._waiting.discard(index)
        self._changed.set()

    async def follow(self, index: int, work: Awaitable[T]) -> None:
        """Awaits the work on an item and keeps its result."""
        try:
            self._ready[index] = await work
        except Exception as error:
            self._failure = error
            self._finished.set()
        self.arrived(index)
        self._unfinished -= 1
        if not self._unfinished:
            self._finished.set()

    async def parts(self) -> AsyncIterator[tuple[dict[int, T], int]]:
        """Results by index, with the number of items that wait for downloads: in one part, unless some wait for long.

        Raises:
            Whatever the work on an item has raised.
        """
        await self._finish(FIRST_S)
        told = 0
        while self._unfinished or self._ready:
            if not told and not self._waiting:
                # What is left is decoding, which ends without any other server.
                await self._finish()
            self._changed.clear()
            if self._ready or told != len(self._waiting):
                ready, self._ready = self._ready, {}
                told = len(self._waiting)
                yield dict(sorted(ready.items())), told
            if told:
                await self._changed.wait()
                await self._finish(PAUSE_S)

    async def _finish(self, seconds: float | None = None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._finished.wait()
        if self._failure is not None:
            raise self._failure
