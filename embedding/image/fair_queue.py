"""A fair queue for a limited number of slots: callers that have used little CPU time go before those that used much.

Input: callers (`Call`) that wait for a slot, with the seconds of work that each has had. Output: slots, granted in the
order of those seconds, with every fourth slot for the caller that has waited longest.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from itertools import count

LEVEL_S = 0.5
"""Seconds of work per priority level. A chunk of ordinary pictures takes less, so it stays in the first level."""

OLDEST_EVERY = 4
"""Each slot of this number goes to the longest waiting caller, so that no caller waits for ever."""

CLEANUP_EVERY = 1000


class Call:
    """One caller, which may wait for several slots at a time; for example one chunk of pictures.

    Attributes:
        spent_s: seconds of work that it has had so far, increased by the code that does the work.
    """

    def __init__(self) -> None:
        self.spent_s = 0.0

    @property
    def level(self) -> int:
        """Its priority level; level 0 goes first."""
        return int(self.spent_s / LEVEL_S)


class NoSlotError(Exception):
    """No slot became free in time, or the queue holds as many bytes as it may."""


class FairQueue:
    """Grants a limited number of slots to callers. It belongs to one event loop.

    Args:
        slots: number of slots.
        max_wait_s: seconds that a caller waits at most.
        max_waiting_bytes: maximum number of bytes that all waiting callers hold together.
    """

    def __init__(self, slots: int, max_wait_s: float = math.inf, max_waiting_bytes: float = math.inf) -> None:
        self._free_slots = slots
        self._max_wait_s = max_wait_s
        self._free_bytes = max_waiting_bytes
        self._numbers = count()
        self._grants = 0
        self._by_level: list[tuple[int, int, Call, asyncio.Future[None]]] = []
        self._by_age: deque[asyncio.Future[None]] = deque()
        self.waiting = 0
        """Callers that wait for a slot."""

    async def acquire(self, call: Call, nbytes: int = 0) -> None:
        """Waits for a slot, and takes it. `release` gives it back.

        Args:
            call: the caller.
            nbytes: bytes that the caller holds while it waits.

        Raises:
            NoSlotError: no slot became free within `max_wait_s`, or `nbytes` more would exceed `max_waiting_bytes`.
        """
        if self._free_slots:
            self._free_slots -= 1
            return
        if nbytes > self._free_bytes:
            raise NoSlotError
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._by_level, (call.level, next(self._numbers), call, slot))
        self._by_age.append(slot)
        self._free_bytes -= nbytes
        self.waiting += 1
        try:
            async with asyncio.timeout(None if self._max_wait_s == math.inf else self._max_wait_s):
                await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled():
                self.release()
            slot.cancel()
            if isinstance(error, TimeoutError):
                raise NoSlotError from None
            raise
        finally:
            self._free_bytes += nbytes
            self.waiting -= 1

    def release(self) -> None:
        """Gives a slot back, which is granted to the next caller that waits."""
        slot = self._next()
        if slot is None:
            self._free_slots += 1
        else:
            slot.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        self._grants += 1
        if self._grants % CLEANUP_EVERY == 0:
            self._remove_finished()
        while self._by_age and self._by_age[0].done():
            self._by_age.popleft()
        if not self._by_age:
            self._by_level.clear()
            return None
        if self._grants % OLDEST_EVERY == 0:
            return self._by_age.popleft()
        while True:
            level, number, call, slot = heapq.heappop(self._by_level)
            if slot.done():
                continue
            # The caller may have used CPU time for other slots since it joined the queue.
            if call.level <= level:
                return slot
            heapq.heappush(self._by_level, (call.level, number, call, slot))

    def _remove_finished(self) -> None:
        """Removes callers that have been granted a slot, or were cancelled."""
        self._by_level = [entry for entry in self._by_level if not entry[3].done()]
        heapq.heapify(self._by_level)
        self._by_age = deque(slot for slot in self._by_age if not slot.done())
