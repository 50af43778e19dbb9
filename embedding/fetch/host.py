"""The state of one host (name and port) from which pictures are downloaded.

It holds the running and the waiting transfers, the circuit breaker, the concurrency limit, the measured bytes per
second, and the usual time to the first byte.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from embedding.fetch.breaker import CircuitBreaker
from embedding.fetch.concurrency_limit import ConcurrencyLimit

if TYPE_CHECKING:
    from embedding.fetch.scheduler import WaitQueue
    from embedding.fetch.slot import Slot

logger = logging.getLogger("ray.serve")

_BUCKET_S = 1.0
_BUCKETS = 30
# A transfer is silent if its first byte takes longer than `_SILENT_FACTOR` times the average, and `_MIN_SILENT_S`.
_MIN_SILENT_S = 0.5
_SILENT_FACTOR = 4.0
# Weight of the newest value in the moving average of times to the first byte.
_EWMA_WEIGHT = 0.2
_RECENT_S = 10.0
# Silence counts as rare if there is at least this number of answers for each transfer without one.
_RARE_FACTOR = 20
# Maximum number of transfers while one of them has been given more time.
_MAX_BESIDE_EXTENDED = 2
# Number of counted outcomes after which the counts are halved, so that old ones lose weight.
_MAX_COUNTED = 2000


class ThroughputMeter:
    """Measures the bytes per second of one host: the best second of the last 30."""

    def __init__(self) -> None:
        self._buckets: list[list[float]] = []  # not a deque, which takes half a KiB even when empty

    def add(self, now: float, nbytes: int) -> None:
        """Counts bytes that have arrived."""
        if not self._buckets or now - self._buckets[-1][0] >= _BUCKET_S:
            self._buckets = [*self._buckets[1 - _BUCKETS :], [now, 0]]
        self._buckets[-1][1] += nbytes

    def best(self, now: float) -> float:
        """Bytes per second; 0 if none have arrived."""
        oldest = now - _BUCKETS * _BUCKET_S
        return max((nbytes / _BUCKET_S for at, nbytes in self._buckets if at >= oldest), default=0.0)


class Host:
    """One host and port.

    Args:
        name: host and port.
        max_transfers: upper bound of the transfers at a time.
        breaker: the circuit breaker of this host.
    """

    def __init__(self, name: str, max_transfers: int, breaker: CircuitBreaker) -> None:
        self.name = name
        self.breaker = breaker
        self.limit = ConcurrencyLimit(max_transfers)
        self.meter = ThroughputMeter()
        self.running: set[Slot] = set()
        self.silent = 0
        """Number of running transfers that have waited for their first byte for longer than is usual for this host."""
        self.queues: dict[str, WaitQueue] = {}
        """The transfers that wait for this host, by request."""
        self.blocked: OrderedDict[WaitQueue, None] = OrderedDict()
        """Queues that wait only for this host to admit more transfers."""
        self.last_shared_at = float("-inf")
        """Last time at which more than one transfer ran."""
        self.extended = 0
        """Number of running transfers that have been given more than their time limit."""
        self._answers = self._silences = 0
        self.answered_at = self.failed_at = float("-inf")
        self.idle_since = float("-inf")
        self.probe_timer: asyncio.TimerHandle | None = None
        """Wakes the waiting transfers when the pause of the circuit breaker ends."""
        self._max_transfers = max_transfers
        self._average_first_byte_s = 0.0

    @property
    def load(self) -> int:
        """Number of transfers that count towards the concurrency limit: silent ones do not."""
        return len(self.running) - self.silent

    @property
    def silent_after_s(self) -> float:
        """Seconds without a first byte after which a transfer counts as silent."""
        return max(_MIN_SILENT_S, _SILENT_FACTOR * self._average_first_byte_s)

    def admits(self, now: float) -> bool:
        """Whether one more transfer may start."""
        if not self.breaker.admits(now) or len(self.running) >= self._max_transfers:
            return False
        limit = self.limit.value
        # Few transfers run beside one that has been given more time, so that it can be completed within that time.
        if self.load >= (max(1, min(limit // 2, _MAX_BESIDE_EXTENDED)) if self.extended else limit):
            self.limit.note_blocked()
            return False
        return True

    def answered_recently(self, now: float) -> bool:
        """Whether a byte has arrived from it in the last seconds."""
        return now - self.answered_at < _RECENT_S

    def failed_recently(self, now: float) -> bool:
        """Whether a transfer has failed in the last seconds."""
        return now - self.failed_at < _RECENT_S

    def answered(self, now: float, first_byte_s: float) -> None:
        """The first byte of an answer has arrived, after `first_byte_s` seconds."""
        average = self._average_first_byte_s
        self._answers += 1
        self._average_first_byte_s = average + _EWMA_WEIGHT * (first_byte_s - average) if average else first_byte_s
        self.bytes_received(now)

    @property
    def silence_is_rare(self) -> bool:
        """Whether nearly all transfers have got a first byte within their time limit."""
        return self._answers >= _RARE_FACTOR * self._silences

    def note_silence(self) -> None:
        """A transfer has reached its time limit without a first byte."""
        self._silences += 1
        if self._silences + self._answers > _MAX_COUNTED:
            self._silences, self._answers = self._silences // 2, self._answers // 2

    def bytes_received(self, now: float) -> None:
        """A byte has arrived from the host."""
        self.answered_at = now
        if self.breaker.answered(now):
            logger.warning("host %s answers again", self.name)
            self.limit = ConcurrencyLimit(self._max_transfers, 1)

    def failed(self, now: float, reason: str, connected: bool) -> bool:
        """A transfer could not connect, or was connected but got no byte for long.

        Returns:
            Whether this has opened the circuit breaker.
        """
        self.failed_at = now
        opens = (self.breaker.silent if connected else self.breaker.unreachable)(now, reason)
        if opens:
            failures = self.breaker.failures
            logger.warning("host %s is left alone: it failed %s times in a row: %s", self.name, failures, reason)
        return opens
