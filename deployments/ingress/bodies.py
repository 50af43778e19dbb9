"""Request bodies as they arrive: counted byte by byte, at a least rate, and none at the cost of the others."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from deployments.ingress.admission import Share
from embedding.errors import Fault, RequestError

SILENT_S = 1.0
"""Who has sent nothing for so long is the first to give way."""
Receive = Callable[[], Awaitable[Any]]


class Pace:
    """Whether bytes keep coming: again and again, so much in so many seconds. A good start does not count later on.

    Args:
        least_bytes_per_s: that there must be.
        grace_s: seconds over which they are counted.
    """

    def __init__(self, least_bytes_per_s: float, grace_s: float) -> None:
        self._needed = least_bytes_per_s * grace_s
        self._grace_s = grace_s
        self._since = time.monotonic()
        self._bytes = 0

    @property
    def left_s(self) -> float:
        """Until bytes are counted anew."""
        return self._since + self._grace_s - time.monotonic()

    def note(self, nbytes: int) -> None:
        """Counts bytes that have come.

        Raises:
            RequestError: TOO_SLOW.
        """
        self._bytes += nbytes
        if self.left_s > 0:
            return
        if self._bytes < self._needed:
            raise RequestError(
                Fault.TOO_SLOW,
                f"The request body came too slowly: {self._bytes} bytes in {self._grace_s:g} s, and {self._needed:.0f} "
                "are the least; send it again",
            )
        self._since = time.monotonic()
        self._bytes = 0


class _Arrival:
    """A body of which more is to come."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.data = bytearray()
        self.last = time.monotonic()
        self.gave_way = False

    @property
    def rank(self) -> tuple[bool, int]:
        """The greatest gives way first."""
        return time.monotonic() - self.last > SILENT_S, len(self.data)

    def give_way(self) -> None:
        self.gave_way = True
        self.data = bytearray()
        self.share.clear()


class Arrivals:
    """The bodies that one ingress reads.

    Those that are not complete may hold only a part of what all bodies may. Where another one needs room there, the one
    that has been silent, or else the largest, gives way to it: nobody keeps others out by not finishing.

    Args:
        most_bytes: of one body.
        most_incomplete: bytes of all that are not complete; a single one may have more.
        least_bytes_per_s, grace_s: see `Pace`.
    """

    def __init__(self, most_bytes: int, most_incomplete: int, least_bytes_per_s: float, grace_s: float) -> None:
        self._most_bytes = most_bytes
        self._most_incomplete = most_incomplete
        self._pace = (least_bytes_per_s, grace_s)
        self._arriving: set[_Arrival] = set()

    async def read(self, receive: Receive, share: Share) -> bytearray:
        """One body, counted as it arrives, whatever its Content-Length says.

        Args:
            receive: gives ASGI's messages.
            share: where its bytes count.

        Raises:
            RequestError: TOO_LARGE, TOO_SLOW, OVERLOADED, or MALFORMED if the client hung up. Nothing is held then, and
                what has not been received is not.
        """
        arrival = _Arrival(share)
        pace = Pace(*self._pace)
        try:
            while await self._take(arrival, await self._next(receive, pace, arrival), pace):
                pass
        except RequestError:
            share.clear()
            raise
        finally:
            self._arriving.discard(arrival)
        return arrival.data

    async def _next(self, receive: Receive, pace: Pace, arrival: _Arrival) -> Any:
        while True:
            try:
                async with asyncio.timeout(max(0.0, pace.left_s)):
                    return await receive()
            except TimeoutError:
                self._must_stay(arrival)
                pace.note(0)

    async def _take(self, arrival: _Arrival, message: Any, pace: Pace) -> bool:
        """Adds a part; whether more is to come."""
        if message["type"] == "http.disconnect":
            raise RequestError(Fault.MALFORMED, "The client hung up before the request body was complete")
        self._must_stay(arrival)
        part, more = message.get("body", b""), message.get("more_body", False)
        if len(arrival.data) + len(part) > self._most_bytes:
            raise RequestError(
                Fault.TOO_LARGE, f"The request body is larger than {self._most_bytes} bytes; send several requests"
            )
        if more:
            pace.note(len(part))
            arrival.last = time.monotonic()
            self._arriving.add(arrival)
            self._make_room(arrival, len(part))
        arrival.share.add(len(part))
        arrival.data += part
        return bool(more)

    def _must_stay(self, arrival: _Arrival) -> None:
        if arrival.gave_way:
            raise RequestError(
                Fault.OVERLOADED,
                f"The server is busy with bytes of requests that are not complete, and takes {self._most_incomplete} "
                "of them at a time; try again in a moment",
            )

    def _make_room(self, arrival: _Arrival, nbytes: int) -> None:
        held = nbytes + sum(len(one.data) for one in self._arriving)
        while held > self._most_incomplete and len(self._arriving) > 1:
            first = max(self._arriving, key=lambda one: (one.rank[0], len(one.data) + nbytes * (one is arrival)))
            held -= len(first.data)
            self._arriving.discard(first)
            first.give_way()
            self._must_stay(arrival)
