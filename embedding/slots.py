"""How many downloads run at a time, in all and from one host."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(slots=True)
class _HostSlots:
    free: asyncio.Semaphore
    users: int = 0


class Slots:
    """How many transfers may run: in all, and per host. Who waits for a busy host takes no slot of others."""

    def __init__(self, total: int, per_host: int) -> None:
        self._total = asyncio.Semaphore(total)
        self._per_host = per_host
        self._hosts: dict[str, _HostSlots] = {}

    async def acquire(self, host: str) -> None:
        """Waits for a free slot, and takes it."""
        slots = self._hosts.get(host)
        if slots is None:
            slots = self._hosts[host] = _HostSlots(asyncio.Semaphore(self._per_host))
        slots.users += 1
        try:
            await slots.free.acquire()
            try:
                await self._total.acquire()
            except BaseException:
                slots.free.release()
                raise
        except BaseException:
            self._leave(host, slots)
            raise

    def release(self, host: str) -> None:
        """Frees a slot, for whoever waits."""
        slots = self._hosts[host]
        self._total.release()
        slots.free.release()
        self._leave(host, slots)

    def _leave(self, host: str, slots: _HostSlots) -> None:
        slots.users -= 1
        if not slots.users:
            del self._hosts[host]
