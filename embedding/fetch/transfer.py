"""One item's download, as the transport tells of it: its time, its room, and what its host learns from it."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

from embedding.fetch.memory_budget import Share
from embedding.fetch.slot import Place
from embedding.fetch.stopwatch import Clock
from embedding.fetch.transport import Kind, TransportError

PATIENCE_S = 3.0
"""Who waits for less without hearing from a host has learned nothing about it."""

MOST_TIMES = 3.0
"""Times its limit that a transfer may take which shares its host's link with others."""

_LEAST_S = 0.05
_STEP = 0.25
_STRAIN_FLOOR_S = 1.0
_RETRY_S = 0.05
_RETRY_BUSY_S = 0.1
_BUSY_TRIES = 6
# Others that share its link will be done, and the rest of it come sooner.
_QUICKER = 4.0
_BEGUN_BYTES = 64 * 2**10
_UNHEARD = frozenset((Kind.NAME, Kind.CONNECTION, Kind.TLS, Kind.SILENCE))


class TooLarge(Exception):
    """The body is larger than it may be."""


class Transfer:
    """Watches the hops of one item, one after the other.

    Its time limit is its own: it does not run while the item waits for a place or for room. When it is over, a transfer
    may go on that has not had the link to itself: see `_more`.

    Args:
        limit_s: its time limit, seconds.
        max_bytes: of the body.
        share: of the room for bodies.
        scope: ended when the time is over.
        deadline: by the event loop's clock, when the time of its request is over.
    """

    def __init__(
        self, limit_s: float, max_bytes: int, share: Share, scope: asyncio.Timeout, deadline: float = math.inf
    ) -> None:
        self.limit_s = limit_s
        self._deadline = deadline
        self._max_bytes = max_bytes
        self._share = share
        self._time = asyncio.get_running_loop().time
        self._clock = Clock(limit_s, scope, self._more)
        self._place: Place | None = None
        self._tries = 0
        self._resume: Callable[[], None] = _nothing
        self._declared: int | None = None
        self._received = 0
        self._body_at = 0.0
        self._paused_at: float | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self.state = ""
        """What it does, to complete "its request's time was over while …"."""
        self._verdict = ""
        self.attempt: asyncio.Timeout | None = None
        """What the hop does now, ended where it is to be tried once more; None between two tries."""
        self._tried_again = False

    def line_up(self) -> None:
        """It waits for a place."""
        self.state = "it waited for its turn"

    @property
    def worth_starting(self) -> bool:
        """Whether a hop may still end in time. Those who wait for each other's places run out of time together."""
        return self._deadline - self._time() > _LEAST_S

    def enter(self, place: Place) -> None:
        """A hop starts."""
        self._place = place
        place.strain_s = max(self.limit_s, _STRAIN_FLOOR_S)
        self._received = 0
        self._declared = None
        self.state = "it was under way"
        self._clock.run()
        self._alarm = asyncio.get_running_loop().call_later(place.host.silent_after_s, self._silent)

    def leave(self, complete: bool) -> None:
        """A hop is over."""
        place = self._place
        assert place is not None
        now = self._time()
        if complete:
            place.end(now)
        elif not place.heard and now - place.started - place.paused_s >= PATIENCE_S - 0.01:
            place.failed(now, "no answer" if place.connected else "no connection")
        self._resumed()
        self._clock.pause()
        if self._alarm is not None:
            self._alarm.cancel()
        self._place = None
        self._resume = _nothing
        place.leave(now)

    def try_again_after(self, error: TransportError) -> float | None:
        """Seconds after which a hop that failed is worth another try; None if it is not."""
        place = self._place
        assert place is not None
        now = self._time()
        if error.kind not in _UNHEARD or place.heard:
            return None
        self._tries += 1
        if error.kind in (Kind.CONNECTION, Kind.SILENCE) and place.host.heard_lately(now):
            # It answers others, so it takes fewer at a time than we have tried.
            place.refused(now)
            if self._tries < _BUSY_TRIES:
                return _RETRY_BUSY_S * 2.0**self._tries * random.uniform(0.5, 1.0)
        elif error.kind is Kind.CONNECTION and self._tries < 2:
            return _RETRY_S
        place.failed(now, error.reason)
        return None

    def stop(self) -> None:
        """It is over, one way or another."""
        self._clock.pause()

    def too_late(self) -> str:
        """What was the matter when its time was over."""
        return self._verdict

    # --- what the transport tells ---

    def began(self, resume: Callable[[], None]) -> None:
        """A hop is about to start."""
        self._resume = resume

    def connected(self) -> None:
        """There is a connection; perhaps another one than before."""
        self._received = 0
        assert self._place is not None
        self._place.connect()

    def answering(self) -> None:
        """The answer begins."""
        self._hear(0)

    def length(self, nbytes: int | None) -> None:
        """Of a body, if it is known."""
        if nbytes is not None and nbytes > self._max_bytes:
            raise TooLarge(f"it has {nbytes} bytes, and {self._max_bytes} are allowed")
        self._declared = nbytes
        assert self._place is not None
        self._body_at = self._time() - self._place.paused_s  # so that later pauses alone are left out

    def wants(self, nbytes: int) -> bool:
        """More bytes of the body are there; False if they have to wait."""
        needed = self._received + nbytes
        if needed > self._max_bytes:
            raise TooLarge(f"it has more than the {self._max_bytes} bytes that are allowed")
        if self._share.waiting:
            return False
        most = self._max_bytes if self._declared is None else max(self._declared, needed)
        if not self._share.grow(needed, most, self._has_room):
            if self._paused_at is None:
                self._paused_at = self._time()
                self._clock.pause()
            return False
        self._received = needed
        self._hear(nbytes)
        return True

    # --- its time ---

    def _has_room(self) -> None:
        self._resumed()
        self._clock.run()
        self._resume()

    def _resumed(self) -> None:
        if self._paused_at is not None:
            assert self._place is not None
            self._place.paused_s += self._time() - self._paused_at
            self._paused_at = None

    def _hear(self, nbytes: int) -> None:
        assert self._place is not None
        if not self._place.heard and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._place.hear(self._time(), nbytes)

    def _silent(self) -> None:
        place = self._place
        assert place is not None
        self._alarm = None
        left = place.host.silent_after_s - (self._time() - place.started)
        if left > 0.01:
            self._alarm = asyncio.get_running_loop().call_later(left, self._silent)
        else:
            place.count_as_silent(True)

    def _more(self) -> float:
        """Seconds by which it may exceed its limit: because it shares its host's link with others, and alone would have
        arrived in time. It goes on, or begins once more where its connection has come to a standstill; in all it takes
        no longer than `MOST_TIMES` times its limit."""
        place = self._place
        if place is None:
            return 0.0
        now = self._time()
        if place.heard:
            place.late(now)
        else:
            place.host.was_silent()
        self._verdict = _verdict(place)
        left = MOST_TIMES * self.limit_s - self._clock.spent_s
        if left <= 0.01 or not place.shared:
            return 0.0
        if self._goes_on(now, left):
            place.overtime()
            return min(left, _STEP * self.limit_s)
        if self._worth_another_try(now, left):
            self._tried_again = True
            if self.attempt is not None:
                self.attempt.reschedule(now)
            return min(left, self.limit_s)
        return 0.0

    def _goes_on(self, now: float, left: float) -> bool:
        """Whether the bytes that still come will be all of them within `left` seconds."""
        place = self._place
        assert place is not None
        if not self._received or not self._fits_alone(now):
            return False
        own = self._received / max(now - self._body_at - place.paused_s, 1e-3)
        if self._declared is None:
            # Its fair part of the link, more or less: then it is the link that is slow.
            return own * len(place.host.running) * _QUICKER >= place.host.meter.best(now)
        return self._declared - self._received <= own * _QUICKER * left

    def _worth_another_try(self, now: float, left: float) -> bool:
        """Whether it is packets that were lost, and not a path that hangs, or trickles."""
        place = self._place
        assert place is not None
        host = place.host
        if self._tried_again or left < self.limit_s or host.heard_at <= place.started:
            return False
        if not place.heard:
            return not place.connected or host.silence_is_rare
        if self._received == 0:
            return host.silence_is_rare
        began = self._received >= min(_BEGUN_BYTES, (self._declared or 0) / 20)
        return began and self._fits_alone(now)

    def _fits_alone(self, now: float) -> bool:
        """Whether it would arrive within its limit with the link to itself."""
        assert self._place is not None
        nbytes = self._received if self._declared is None else self._declared
        return nbytes <= self._place.host.meter.best(now) * self.limit_s


def _verdict(place: Place) -> str:
    if place.heard:
        return "it was not complete"
    return "its host had not answered" if place.connected else "there was no connection to its host"


def _nothing() -> None:
    pass
