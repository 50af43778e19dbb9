"""A cache of resolved host names: one lookup for all concurrent callers, remembered for some seconds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from embedding.fetch.guard import Resolver

_MOST_NAMES = 4096


class AddressCache:
    """Remembers the answers of a resolver. It belongs to the event loop of its first lookup.

    Args:
        resolver: asked for what is not remembered; failures are not.
        cache_s: seconds for which an answer is remembered; 0 = only while it is being asked for.
    """

    def __init__(self, resolver: Resolver, cache_s: float) -> None:
        self._resolver = resolver
        self._cache_s = cache_s
        self._known: OrderedDict[tuple[str, int], tuple[float, list[str]]] = OrderedDict()
        self._asked: dict[tuple[str, int], asyncio.Task[list[str]]] = {}

    async def addresses(self, host: str, port: int) -> list[str]:
        """IP addresses as text, at least one. Raises what the resolver raises."""
        key = host, port
        until, found = self._known.get(key, (0.0, []))
        if until > asyncio.get_running_loop().time():
            return found
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(self._ask(host, port))
            task.add_done_callback(_retrieve_exception)
        # A caller that is cancelled must not cancel the lookup of the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        for task in self._asked.values():
            task.cancel()
        await self._resolver.close()

    async def _ask(self, host: str, port: int) -> list[str]:
        key = host, port
        try:
            found = await self._resolver.resolve(host, port)
        finally:
            del self._asked[key]
        if self._cache_s > 0:
            self._known[key] = asyncio.get_running_loop().time() + self._cache_s, found
            self._known.move_to_end(key)
            if len(self._known) > _MOST_NAMES:
                self._known.popitem(last=False)
        return found


def _retrieve_exception(task: asyncio.Task[list[str]]) -> None:
    """Marks a failure as seen: every caller that waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()
