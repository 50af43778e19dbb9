"""Reads request bodies: counts their bytes as they arrive, requires a minimum rate, and evicts incomplete bodies when
others need memory."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from deployments.ingress.admission import AdmissionShare
from embedding.errors import Fault, RequestError

SILENT_S = 1.0
"""A client that has sent nothing for this long is the first whose body is evicted."""
Receive = Callable[[], Awaitable[Any]]


class Pace:
    """Checks the rate of a body in periods of `grace_s` seconds, each on its own: being fast at first is no excuse for
    stalling later.

    Args:
        least_bytes_per_s: the minimum rate.
        grace_s: seconds over which it is measured.
    """

    def __init__(self, least_bytes_per_s: float, grace_s: float) -> None:
        self._needed = least_bytes_per_s * grace_s
        self._grace_s = grace_s
        self._since = time.monotonic()
        self._bytes = 0

    @property
    def left_s(self) -> float:
        """Seconds until the current period ends."""
        return self._since + self._grace_s - time.monotonic()

    def note(self, nbytes: int) -> None:
        """Counts bytes that have arrived.

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
    """A body that is being received."""

    def __init__(self, share: AdmissionShare) -> None:
        self.share = share
        self.data = bytearray()
        self.last = time.monotonic()
        self.evicted = False

    @property
    def rank(self) -> tuple[bool, int]:
        """Sort key of eviction: the greatest is evicted first."""
        return time.monotonic() - self.last > SILENT_S, len(self.data)

    def evict(self) -> None:
        self.evicted = True
        self.data = bytearray()
        self.share.clear()


class Arrivals:
    """The bodies that one ingress reads.

    Incomplete bodies have a memory budget of their own. If it is exceeded, one that has been silent for `SILENT_S` is
    evicted, or else the largest: a client cannot block others by never completing its body.

    Args:
        most_bytes: limit of one body.
        most_incomplete: bytes of all incomplete bodies; a single one may have more.
        least_bytes_per_s, grace_s: see `Pace`.
    """

    def __init__(self, most_bytes: int, most_incomplete: int, least_bytes_per_s: float, grace_s: float) -> None:
        self._most_bytes = most_bytes
        self._most_incomplete = most_incomplete
        self._pace = (least_bytes_per_s, grace_s)
        self._arriving: set[_Arrival] = set()

    async def read(self, receive: Receive, share: AdmissionShare) -> bytearray:
        """Reads one body, whose bytes are counted as they arrive, whatever its Content-Length says.

        Args:
            receive: ASGI's `receive`.
            share: where its bytes are counted.

        Raises:
            RequestError: TOO_LARGE, TOO_SLOW, OVERLOADED, or MALFORMED if the client hung up. The share is empty then,
                and the rest of the body is not received.
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
                self._check_evicted(arrival)
                pace.note(0)

    async def _take(self, arrival: _Arrival, message: Any, pace: Pace) -> bool:
        """Adds one message of the body; returns whether more are to come."""
        if message["type"] == "http.disconnect":
            raise RequestError(Fault.MALFORMED, "The client hung up before the request body was complete")
        self._check_evicted(arrival)
        part, more = message.get("body", b""), message.get("more_body", False)
        if len(arrival.data) + len(part) > self._most_bytes:
            raise RequestError(
                Fault.TOO_LARGE, f"The request body is larger than {self._most_bytes} bytes; send several requests"
            )
        if more:
            pace.note(len(part))
            arrival.last = time.monotonic()
            self._arriving.add(arrival)
            self._evict_others(arrival, len(part))
        arrival.share.add(len(part))
        arrival.data += part
        return bool(more)

    def _check_evicted(self, arrival: _Arrival) -> None:
        if arrival.evicted:
            raise RequestError(
                Fault.OVERLOADED,
                f"The server is busy with bytes of requests that are not complete, and takes {self._most_incomplete} "
                "of them at a time; try again in a moment",
            )

    def _evict_others(self, arrival: _Arrival, nbytes: int) -> None:
        """Makes `nbytes` of the budget available for a body, which may be the one that is evicted."""
        held = nbytes + sum(len(one.data) for one in self._arriving)
        while held > self._most_incomplete and len(self._arriving) > 1:
            first = max(self._arriving, key=lambda one: (one.rank[0], len(one.data) + nbytes * (one is arrival)))
            held -= len(first.data)
            self._arriving.discard(first)
            first.evict()
            self._check_evicted(arrival)
