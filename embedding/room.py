"""How much memory downloads may take together: each takes room for its bytes before it reads them."""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """Bytes that may be held at a time.

    Who needs more than is left waits, first come, first served; who already holds some goes before those who hold
    none, since only those who finish give room back. What is larger than all of it is taken when nothing else is held.
    And one at a time may grow beyond the limit: otherwise many that have begun could wait for each other.

    Args:
        nbytes: that may be held together.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self.held = 0
        self._line: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    def share(self) -> Share:
        """A share of no bytes yet."""
        return Share(self)

    async def take(self, nbytes: int, held: int = 0) -> None:
        """Waits until `nbytes` are free, and takes them, for somebody who holds `held` already."""
        if not self._line and self._fits(nbytes, held):
            self.held += nbytes
            return
        turn = asyncio.get_running_loop().create_future()
        (self._line.appendleft if held else self._line.append)((nbytes, held, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # the next in line may be smaller
            else:
                self.give_back(nbytes)
            raise

    def give_back(self, nbytes: int) -> None:
        """Frees bytes, for whoever waits."""
        self.held -= nbytes
        self._admit()

    def _fits(self, nbytes: int, held: int) -> bool:
        grows = held > 0 and self.held <= self._nbytes
        return grows or self.held + nbytes <= self._nbytes or self.held == held

    def _admit(self) -> None:
        while self._line:
            nbytes, held, turn = self._line[0]
            if not turn.done():
                if not self._fits(nbytes, held):
                    return
                self.held += nbytes
                turn.set_result(None)
            self._line.popleft()


class Share:
    """The bytes of one download.

    Args:
        room: where they are held.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.nbytes = 0
        self.waiting = 0
        """Bytes that it waits for at the moment."""

    async def grow(self, nbytes: int) -> None:
        """Waits for room for `nbytes` in all; at once if it has that already."""
        more = nbytes - self.nbytes
        if more <= 0:
            return
        self.waiting = more
        await self._room.take(more, self.nbytes)
        self.waiting = 0
        self.nbytes = nbytes

    def release(self) -> None:
        """Gives all of it back."""
        if self.nbytes:
            self._room.give_back(self.nbytes)
            self.nbytes = 0
