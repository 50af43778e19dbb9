"""Of many contents, which wait for downloads, and which are ready to be handed over together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

FIRST_S = 0.25
"""Nearly all chunks are ready by then, and are handed over whole."""
PAUSE_S = 0.5
"""Between the first that is ready and handing over what is: each part costs a message and a forward pass of its own."""


class Progress(Generic[T]):
    """A chunk's contents on their way. It belongs to one event loop.

    Args:
        count: how many there are; all of them wait at first.
    """

    def __init__(self, count: int) -> None:
        self._waiting = set(range(count))
        self._unfinished = count
        self._ready: dict[int, T] = {}
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._finished = asyncio.Event()

    def arrived(self, place: int) -> None:
        """A content waits for no download any more."""
        self._waiting.discard(place)
        self._changed.set()

    async def follow(self, place: int, work: Awaitable[T]) -> None:
        """Notes how the work on a content ends."""
        try:
            self._ready[place] = await work
        except Exception as error:
            self._failure = error
            self._finished.set()
        self.arrived(place)
        self._unfinished -= 1
        if not self._unfinished:
            self._finished.set()

    async def parts(self) -> AsyncIterator[tuple[dict[int, T], int]]:
        """What is ready, by place, and how many wait for downloads: once, unless some wait for long.

        Raises:
            Whatever the work on a content has raised.
        """
        await self._finish(FIRST_S)
        told = 0
        while self._unfinished or self._ready:
            if not told and not self._waiting:
                # Decoding is work, which comes to an end by itself.
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
