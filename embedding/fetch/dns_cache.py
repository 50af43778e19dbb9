"""A cache of resolved host names: concurrent callers share one lookup, and its answer is cached for some seconds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from embedding.fetch.guard import Resolver

_MAX_NAMES = 4096


class AddressCache:
    """Caches the answers of a resolver. It belongs to the event loop of its first lookup.

    Args:
        resolver: called on a cache miss. Failed lookups are not cached.
        cache_s: seconds for which an answer is cached; 0 = only concurrent lookups share an answer.
    """

    def __init__(self, resolver: Resolver, cache_s: float) -> None:
        self._resolver = resolver
        self._cache_s = cache_s
        self._cached: OrderedDict[tuple[str, int], tuple[float, list[str]]] = OrderedDict()
        self._pending: dict[tuple[str, int], asyncio.Task[list[str]]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """The IP addresses of a host as text, at least one. Raises what the resolver raises."""
        key = host, port
        until, found = self._cached.get(key, (0.0, []))
        if until > asyncio.get_running_loop().time():
            return found
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(self._look_up(host, port))
            task.add_done_callback(_retrieve_exception)
        # A caller that is cancelled must not cancel the lookup of the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancels pending lookups, and closes the resolver."""
        for task in self._pending.values():
            task.cancel()
        await self._resolver.close()

    async def _look_up(self, host: str, port: int) -> list[str]:
        key = host, port
        try:
            found = await self._resolver.resolve(host, port)
        finally:
            del self._pending[key]
        if self._cache_s > 0:
            self._cached[key] = asyncio.get_running_loop().time() + self._cache_s, found
            self._cached.move_to_end(key)
            if len(self._cached) > _MAX_NAMES:
                self._cached.popitem(last=False)
        return found


def _retrieve_exception(task: asyncio.Task[list[str]]) -> None:
    """Marks a failure as seen: every caller that waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()
