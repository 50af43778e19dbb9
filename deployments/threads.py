"""`downloadThreadCount`: transfers that one request may have at a time, wherever its chunks are sent."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

from deployments.parts import DownloadTerms

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


class Pools:
    """Of each request, the transfers that all its calls to this process may have together."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._threads: Counter[str] = Counter()

    @contextmanager
    def joined(self, terms: DownloadTerms) -> Iterator[int]:
        """A call brings its transfers for as long as the context lasts, or until the last of its request's calls here
        has ended; gives the sum of them."""
        self._calls[terms.request] += 1
        self._threads[terms.request] += terms.threads
        try:
            yield self._threads[terms.request]
        finally:
            self._calls[terms.request] -= 1
            if not self._calls[terms.request]:
                del self._calls[terms.request], self._threads[terms.request]
            elif not terms.keeps_threads:
                self._threads[terms.request] -= terms.threads
