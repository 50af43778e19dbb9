"""Divides a request's concurrent transfers (`downloadThreadCount`, at all preprocessors together) among its chunks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

DEFAULT_THREADS = 20
"""What Marqo sends when it indexes."""


@dataclass(frozen=True, slots=True)
class Threads:
    """The transfers of one call: `threads` and `keeps_threads` of `DownloadOptions`."""

    count: int
    kept: bool


NO_THREADS = Threads(0, False)
"""For a call that has nothing to download."""


class ThreadShares:
    """Divides a request's concurrent transfers among its concurrent calls, at least one for each.

    Args:
        threads: concurrent transfers of the request.
        calls: all calls of the request that download something. For one that does not after all, call `renounce`.
        at_once: limit of its concurrent calls, whatever `threads` is.
    """

    def __init__(self, threads: int, calls: int, at_once: int) -> None:
        self._at_once = max(1, min(threads, calls, at_once))
        self._unsent = calls
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for i in range(self._at_once):
            self._free.put_nowait(threads // self._at_once + (i < threads % self._at_once))

    def renounce(self) -> None:
        """Instead of the first `share` of a call: it has nothing to download."""
        self._unsent -= 1

    @asynccontextmanager
    async def share(self, again: bool = False) -> AsyncIterator[Threads]:
        """The transfers of one call, until the context ends; waits until some are free.

        Args:
            again: whether the call repeats an earlier one.
        """
        count = await self._free.get()
        try:
            self._unsent -= not again
            yield Threads(count, self._unsent < self._at_once)
        finally:
            self._free.put_nowait(count)
