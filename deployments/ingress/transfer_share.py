"""`downloadThreadCount`: transfers that one request may have at a time, wherever its chunks are sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

DEFAULT_THREADS = 20
"""What Marqo asks for when it indexes."""


class Threads(NamedTuple):
    """Of one call; see `DownloadTerms`."""

    count: int
    kept: bool


NO_THREADS = Threads(0, False)
"""Of a call that has nothing to download."""


class ThreadShares:
    """Divides a request's transfers among those of its calls that run at a time, each at least one.

    Args:
        threads: transfers of the request at a time.
        calls: of the request, all together.
        at_once: calls that may run at a time, whatever the threads.
    """

    def __init__(self, threads: int, calls: int, at_once: int) -> None:
        self._at_once = max(1, min(threads, calls, at_once))
        self._unsent = calls
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for i in range(self._at_once):
            self._free.put_nowait(threads // self._at_once + (i < threads % self._at_once))

    @asynccontextmanager
    async def share(self, again: bool = False) -> AsyncIterator[Threads]:
        """One call's, for as long as the context lasts; waits until there are some.

        Args:
            again: the call has been made before, and is repeated.
        """
        count = await self._free.get()
        try:
            self._unsent -= not again
            yield Threads(count, self._unsent < self._at_once)
        finally:
            self._free.put_nowait(count)
