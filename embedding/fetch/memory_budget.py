"""A memory budget for items: memory for the bytes of an item is reserved before they are read or decoded.

Input: a number of bytes for all items together. Output: one `Reservation` for each item, which grows with its bytes,
and waits while the budget is used up.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

_FIRST_BYTES = 64 * 2**10
"""First reservation of a body, unless it is known to be shorter. A body that is longer doubles it each time."""


class MemoryBudget:
    """The bytes that all items may hold at a time. It belongs to one event loop.

    A reservation that needs more than is left waits, first come, first served. Those that hold bytes already go before
    those that hold none, because only an item that completes releases memory. A reservation that is larger than the
    whole budget is granted when nothing else is held. In addition, one reservation at a time may exceed the budget
    until it is released: otherwise several items that have started could wait for each other.

    Args:
        nbytes: the size of the budget.

    Attributes:
        held_bytes: bytes of all reservations together.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self.held_bytes = 0
        self._over_budget: Reservation | None = None
        self._waiting_holders: OrderedDict[Reservation, None] = OrderedDict()
        self._waiting_new: OrderedDict[Reservation, None] = OrderedDict()

    def reservation(self) -> Reservation:
        """A new reservation, of 0 bytes."""
        return Reservation(self)

    def enqueue(self, reservation: Reservation) -> None:
        """Adds a reservation to the queue of those that wait for bytes."""
        (self._waiting_holders if reservation.nbytes else self._waiting_new)[reservation] = None
        self._grant_waiting()

    def remove(self, reservation: Reservation) -> None:
        """Removes a reservation from the queue, and frees its bytes."""
        self._waiting_holders.pop(reservation, None)
        self._waiting_new.pop(reservation, None)
        if self._over_budget is reservation:
            self._over_budget = None
        self.free(reservation.nbytes)

    def free(self, nbytes: int) -> None:
        """Frees bytes, and grants them to reservations that wait."""
        self.held_bytes -= nbytes
        self._grant_waiting()

    def _fits(self, reservation: Reservation) -> bool:
        if self.held_bytes + reservation.waiting_bytes <= self._nbytes or self.held_bytes == reservation.nbytes:
            return True
        return self._over_budget is reservation or (self._over_budget is None and reservation.nbytes > 0)

    def _grant_waiting(self) -> None:
        while queue := self._waiting_holders or self._waiting_new:
            # The reservation that may exceed the budget goes first, because all others wait until it is released.
            reservation = self._over_budget if self._over_budget in queue else next(iter(queue))
            assert reservation is not None
            if not self._fits(reservation):
                return
            del queue[reservation]
            self.held_bytes += reservation.waiting_bytes
            if self.held_bytes > self._nbytes:
                self._over_budget = reservation
            reservation.grant()


class Reservation:
    """The memory of one item.

    Args:
        budget: the budget from which it is taken.

    Attributes:
        nbytes: bytes that it holds.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.nbytes = 0
        self.waiting_bytes = 0
        """Bytes that it waits for, in addition to those that it holds."""
        self._on_granted: Callable[[], None] | None = None

    def grow(self, nbytes: int, max_bytes: int, on_granted: Callable[[], None]) -> bool:
        """Enlarges the reservation to at least `nbytes`.

        Args:
            nbytes: bytes that are needed now, in total.
            max_bytes: bytes that may be needed in the end, as far as is known.
            on_granted: called once the bytes are granted, unless the reservation is released before.

        Returns:
            True if the bytes are granted already; then `on_granted` is not called.
        """
        if nbytes <= self.nbytes:
            return True
        wanted = max(nbytes, min(max_bytes, max(_FIRST_BYTES, 2 * self.nbytes)))
        self.waiting_bytes = wanted - self.nbytes
        self._budget.enqueue(self)
        if not self.waiting_bytes:
            return True
        self._on_granted = on_granted
        return False

    async def hold(self, nbytes: int) -> None:
        """Waits until the reservation has at least `nbytes`."""
        granted = asyncio.Event()
        if not self.grow(nbytes, nbytes, granted.set):
            await granted.wait()

    def grant(self) -> None:
        """Called by the budget: the bytes that it waited for are granted."""
        self.nbytes += self.waiting_bytes
        self.waiting_bytes = 0
        on_granted, self._on_granted = self._on_granted, None
        if on_granted is not None:
            on_granted()

    def release(self) -> None:
        """Gives all bytes back, and stops waiting."""
        self._on_granted = None
        self._budget.remove(self)
        self.nbytes = self.waiting_bytes = 0
