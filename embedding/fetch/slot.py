"""The slot of one running transfer: passes on what happens to the transfer.

Each event (connected, bytes received, complete, timed out, failed) is passed on to the host, its circuit breaker and
concurrency limit, and to the scheduler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedding.fetch.concurrency_limit import FinishedTransfer
from embedding.fetch.host import Host

if TYPE_CHECKING:
    from embedding.fetch.scheduler import Request, Scheduler


class Slot:
    """One transfer that runs at a host, from its start until `release`. All times are in seconds.

    Args:
        scheduler: has granted the slot.
        host: the host of the transfer.
        request: the client request of the transfer.
        now: start of the transfer.

    Attributes:
        started: start of the transfer.
        connected: whether it has had a connection.
        answered: whether a byte of an answer has arrived.
        nbytes: bytes of the body that have arrived.
        epoch: the epoch of the concurrency limit in which it started.
    """

    def __init__(self, scheduler: Scheduler, host: Host, request: Request, now: float) -> None:
        self._scheduler = scheduler
        self.host = host
        self.request = request
        self.limit = host.limit
        self.started = now
        self.reference_s = 1.0
        """The time limit by which its duration is divided for the duration ratio."""
        self.paused_s = 0.0
        """Seconds for which it waited for memory."""
        self.connected = False
        self.answered = False
        self.nbytes = 0
        self._silent = self._extended = False
        host.running.add(self)
        self._note_shared(now)
        host.breaker.started(now)
        self.epoch = self.limit.started(now, host.load)

    def mark_connected(self) -> None:
        """The transfer has a connection."""
        self.connected = True
        self.host.breaker.connected()

    def mark_received(self, now: float, nbytes: int) -> None:
        """Bytes of an answer have arrived; 0 for the first line of its head."""
        host = self.host
        self.nbytes += nbytes
        host.meter.add(now, nbytes)
        was_open = host.breaker.is_open
        if self.answered:
            host.bytes_received(now)
        else:
            self.answered = self.connected = True
            host.answered(now, now - self.started)
            self.set_silent(False)
        if was_open:
            self._scheduler.wake(host)

    def set_silent(self, silent: bool) -> None:
        """Sets whether the transfer counts as silent, and so is left out of the host's load."""
        if silent == self._silent:
            return
        self._silent = silent
        self.host.silent += 1 if silent else -1
        if silent:
            self._scheduler.wake(self.host)

    def extend_time(self) -> None:
        """The transfer has reached its time limit, and has been given more time."""
        if not self._extended:
            self._extended = True
            self.host.extended += 1

    def elapsed_s(self, now: float) -> float:
        """Duration so far, without the time for which it waited for memory."""
        return now - self.started - self.paused_s

    def complete(self, now: float) -> None:
        """A complete answer has arrived."""
        self.limit.ended(
            now, self.epoch, self._finished(now), lambda: self._max_duration_ratio(now), bool(self.host.queues)
        )

    def timed_out(self, now: float) -> None:
        """The transfer has reached its time limit while bytes were arriving."""
        self.limit.timed_out(now, self.epoch, self._finished(now))

    def refused(self, now: float) -> None:
        """The host has refused the connection although it answers other transfers."""
        self.limit.refused(now, self.epoch)

    def failed(self, now: float, reason: str) -> None:
        """The host could not be reached, or has not answered for long."""
        if self.host.failed(now, reason, self.connected):
            self._scheduler.circuit_opened(self.host)
        self._scheduler.schedule_probe(self.host)

    def release(self, now: float) -> None:
        """The transfer has ended: gives the slot back."""
        self._note_shared(now)
        self.set_silent(False)
        self.host.running.discard(self)
        self.host.extended -= self._extended
        if not self.answered:
            self.host.breaker.abandoned()
        self._scheduler.release(self)

    def _note_shared(self, now: float) -> None:
        if len(self.host.running) > 1:
            self.host.last_shared_at = now

    @property
    def shared(self) -> bool:
        """Whether another transfer from the same host has run at the same time."""
        return self.host.last_shared_at > self.started or len(self.host.running) > 1

    def _finished(self, now: float) -> FinishedTransfer:
        elapsed_s = self.elapsed_s(now)
        return FinishedTransfer(self.nbytes, elapsed_s, elapsed_s / self.reference_s)

    def _max_duration_ratio(self, now: float) -> float:
        """The largest duration ratio of the running transfers that started in the same epoch."""
        running = [other for other in self.host.running if other.answered and other.epoch == self.epoch]
        return max((other.elapsed_s(now) / other.reference_s for other in running), default=0.0)
