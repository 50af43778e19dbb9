"""How much memory downloads may take together: each takes room for its bytes before it reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

_FIRST_BYTES = 64 * 2**10
"""Room that a body takes at first, unless it is known to be shorter; then twice as much as it has, as it grows."""


class Room:
    """Bytes that may be held at a time.

    Who needs more than is left waits, first come, first served; who already holds some goes before those who hold
    none, since only those who finish give room back. What is larger than all of it is taken when nothing else is held.
    And one at a time may grow beyond the limit until it is done: otherwise many that have begun could wait for each
    other.

    Args:
        nbytes: that may be held together.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self.held = 0
        self._beyond: Share | None = None
        self._holders: OrderedDict[Share, None] = OrderedDict()
        self._newcomers: OrderedDict[Share, None] = OrderedDict()

    def share(self) -> Share:
        """A share of no bytes yet."""
        return Share(self)

    def ask(self, share: Share) -> None:
        """Puts a share in line for the bytes that it waits for."""
        (self._holders if share.nbytes else self._newcomers)[share] = None
        self._admit()

    def leave(self, share: Share) -> None:
        """A share waits no longer, and gives back what it holds."""
        self._holders.pop(share, None)
        self._newcomers.pop(share, None)
        if self._beyond is share:
            self._beyond = None
        self.give_back(share.nbytes)

    def give_back(self, nbytes: int) -> None:
        """Frees bytes, for whoever waits."""
        self.held -= nbytes
        self._admit()

    def _fits(self, share: Share) -> bool:
        if self.held + share.waiting <= self._nbytes or self.held == share.nbytes:
            return True
        return self._beyond is share or (self._beyond is None and share.nbytes > 0)

    def _admit(self) -> None:
        while line := self._holders or self._newcomers:
            # Who may go beyond the limit must not wait behind those who wait for it.
            share = self._beyond if self._beyond in line else next(iter(line))
            assert share is not None
            if not self._fits(share):
                return
            del line[share]
            self.held += share.waiting
            if self.held > self._nbytes:
                self._beyond = share
            share.granted()


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
        self._then: Callable[[], None] | None = None

    def grow(self, nbytes: int, most: int, then: Callable[[], None]) -> bool:
        """Whether there is room for `nbytes` in all; if not, `then` is called as soon as there is.

        Args:
            nbytes: that are needed now.
            most: that may be needed at all, as far as is known.
            then: called at most once, unless the share is released before.
        """
        if nbytes <= self.nbytes:
            return True
        wanted = max(nbytes, min(most, max(_FIRST_BYTES, 2 * self.nbytes)))
        self.waiting = wanted - self.nbytes
        self._room.ask(self)
        if not self.waiting:
            return True
        self._then = then
        return False

    def granted(self) -> None:
        """What it waited for is its own."""
        self.nbytes += self.waiting
        self.waiting = 0
        then, self._then = self._then, None
        if then is not None:
            then()

    def release(self) -> None:
        """Gives all of it back, and waits no longer."""
        self._then = None
        self._room.leave(self)
        self.nbytes = self.waiting = 0
