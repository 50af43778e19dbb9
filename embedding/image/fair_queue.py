"""Who is next when many want to work and few may: calls that have had much make way for those that have had little."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from itertools import count

STEP_S = 0.5
"""A call makes way after so many seconds of work: a chunk of ordinary pictures is done before, and keeps its place."""

OLDEST_EVERY = 4
"""One turn of so many goes to who has waited longest, so that nobody waits for ever."""

TIDY_EVERY = 1000


class Call:
    """What one caller has asked for at a time.

    Args:
        spent: seconds of work that it has had.
    """

    def __init__(self) -> None:
        self.spent = 0.0

    @property
    def level(self) -> int:
        """How far back it stands."""
        return int(self.spent / STEP_S)


class NoTurnError(Exception):
    """There was none in time, or there is no room to wait."""


class Turns:
    """A few at a time. It belongs to one event loop.

    Args:
        slots: how many.
        patience_s: the longest wait.
        max_waiting_bytes: what all that wait may hold together.
    """

    def __init__(self, slots: int, patience_s: float = math.inf, max_waiting_bytes: float = math.inf) -> None:
        self._free = slots
        self._patience_s = patience_s
        self._room = max_waiting_bytes
        self._numbers = count()
        self._turns = 0
        self._by_level: list[tuple[int, int, Call, asyncio.Future[None]]] = []
        self._by_age: deque[asyncio.Future[None]] = deque()

    async def acquire(self, call: Call, nbytes: int = 0) -> None:
        """Waits for a turn, and takes it.

        Raises:
            NoTurnError: none within `patience_s`, or no room for `nbytes` more.
        """
        if self._free:
            self._free -= 1
            return
        if nbytes > self._room:
            raise NoTurnError
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._by_level, (call.level, next(self._numbers), call, turn))
        self._by_age.append(turn)
        self._room -= nbytes
        try:
            async with asyncio.timeout(None if self._patience_s == math.inf else self._patience_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.release()
            turn.cancel()
            if isinstance(error, TimeoutError):
                raise NoTurnError from None
            raise
        finally:
            self._room += nbytes

    def release(self) -> None:
        """Ends a turn: it is the next one's."""
        turn = self._next()
        if turn is None:
            self._free += 1
        else:
            turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        self._turns += 1
        if self._turns % TIDY_EVERY == 0:
            self._tidy()
        while self._by_age and self._by_age[0].done():
            self._by_age.popleft()
        if not self._by_age:
            self._by_level.clear()
            return None
        if self._turns % OLDEST_EVERY == 0:
            return self._by_age.popleft()
        while True:
            level, number, call, turn = heapq.heappop(self._by_level)
            if turn.done():
                continue
            # It may have worked since it came.
            if call.level <= level:
                return turn
            heapq.heappush(self._by_level, (call.level, number, call, turn))

    def _tidy(self) -> None:
        """Forgets those that have had their turn, or have left."""
        self._by_level = [entry for entry in self._by_level if not entry[3].done()]
        heapq.heapify(self._by_level)
        self._by_age = deque(turn for turn in self._by_age if not turn.done())
