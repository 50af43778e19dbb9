"""A place among the transfers that run: what happens to its transfer, told to those whom it concerns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedding.fetch.concurrency_limit import Ended
from embedding.fetch.host import Host

if TYPE_CHECKING:
    from embedding.fetch.scheduler import Request, Slots


class Place:
    """One transfer's place at its host, from start to end.

    Args:
        slots: where it is given back.
        host: that the transfer is from.
        request: that the transfer is for.
        now: seconds, when it starts.
    """

    def __init__(self, slots: Slots, host: Host, request: Request, now: float) -> None:
        self._slots = slots
        self.host = host
        self.request = request
        self.limit = host.limit
        self.started = now
        self.strain_s = 1.0
        """Seconds that its duration is compared with."""
        self.paused_s = 0.0
        """Seconds that it waited for us."""
        self.connected = False
        self.heard = False
        self._nbytes = 0
        self._silent = self._overtime = False
        host.running.add(self)
        self._note_company(now)
        host.breaker.started(now)
        self.epoch = self.limit.started(now, host.load)

    def connect(self) -> None:
        """There is a connection."""
        self.connected = True
        self.host.breaker.connected()

    def hear(self, now: float, nbytes: int) -> None:
        """Bytes of an answer arrived."""
        host = self.host
        self._nbytes += nbytes
        host.meter.add(now, nbytes)
        was_open = host.breaker.is_open
        if self.heard:
            host.heard(now)
        else:
            self.heard = self.connected = True
            host.answered(now, now - self.started)
            self.count_as_silent(False)
        if was_open:
            self._slots.wake(host)

    def count_as_silent(self, silent: bool) -> None:
        """Whether it is left out of the host's load."""
        if silent == self._silent:
            return
        self._silent = silent
        self.host.silent += 1 if silent else -1
        if silent:
            self._slots.wake(self.host)

    def overtime(self) -> None:
        """Its time was over, and it goes on."""
        if not self._overtime:
            self._overtime = True
            self.host.overtime += 1

    def seconds(self, now: float) -> float:
        """That it has taken so far."""
        return now - self.started - self.paused_s

    def end(self, now: float) -> None:
        """A complete answer is there."""
        self.limit.ended(now, self.epoch, self._so_far(now), lambda: self._eldest(now), bool(self.host.lines))

    def late(self, now: float) -> None:
        """Its time was over while bytes arrived."""
        self.limit.late(now, self.epoch, self._so_far(now))

    def refused(self, now: float) -> None:
        """The host, which answers others, would not take it."""
        self.limit.refused(now, self.epoch)

    def failed(self, now: float, reason: str) -> None:
        """The host could not be reached, or was silent for long."""
        if self.host.failed(now, reason, self.connected):
            self._slots.left_alone(self.host)
        self._slots.knock_later(self.host)

    def leave(self, now: float) -> None:
        """Gives the place back."""
        self._note_company(now)
        self.count_as_silent(False)
        self.host.running.discard(self)
        self.host.overtime -= self._overtime
        if not self.heard:
            self.host.breaker.abandoned()
        self._slots.release(self)

    def _note_company(self, now: float) -> None:
        if len(self.host.running) > 1:
            self.host.shared_at = now

    @property
    def shared(self) -> bool:
        """Whether another transfer of the host ran beside it for some time."""
        return self.host.shared_at > self.started or len(self.host.running) > 1

    def _so_far(self, now: float) -> Ended:
        seconds = self.seconds(now)
        return Ended(self._nbytes, seconds, seconds / self.strain_s)

    def _eldest(self, now: float) -> float:
        """The largest strain of those that run, and were started when no fewer or more might."""
        running = [other for other in self.host.running if other.heard and other.epoch == self.epoch]
        return max((other.seconds(now) / other.strain_s for other in running), default=0.0)
