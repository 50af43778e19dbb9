"""What is known of one host that pictures come from: how it is doing, and how many transfers are good for it."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from embedding.fetch.breaker import Breaker
from embedding.fetch.concurrency_limit import Limit

if TYPE_CHECKING:
    from embedding.fetch.scheduler import Line
    from embedding.fetch.slot import Place

logger = logging.getLogger(__name__)

_BUCKET_S = 1.0
_BUCKETS = 30
_SILENT_S = 0.5
# A first byte that takes so many times what first bytes take of late is not waited for as others are.
_USUAL = 4.0
_WEIGHT = 0.2
_LATELY_S = 10.0
_RARE = 20
_DRAINED = 2
_COUNTED = 2000


class Meter:
    """Bytes per second of one host, in the best second of the last half minute."""

    def __init__(self) -> None:
        self._buckets: list[list[float]] = []  # not a deque, which has half a KiB even when empty

    def add(self, now: float, nbytes: int) -> None:
        """Counts bytes that arrived."""
        if not self._buckets or now - self._buckets[-1][0] >= _BUCKET_S:
            self._buckets = [*self._buckets[1 - _BUCKETS :], [now, 0]]
        self._buckets[-1][1] += nbytes

    def best(self, now: float) -> float:
        """Bytes per second; 0 if there were none."""
        oldest = now - _BUCKETS * _BUCKET_S
        return max((nbytes / _BUCKET_S for at, nbytes in self._buckets if at >= oldest), default=0.0)


class Host:
    """One host and port.

    Args:
        name: host and port.
        most: transfers at a time.
        breaker: of this host.
    """

    def __init__(self, name: str, most: int, breaker: Breaker) -> None:
        self.name = name
        self.breaker = breaker
        self.limit = Limit(most)
        self.meter = Meter()
        self.running: set[Place] = set()
        self.silent = 0
        """Transfers among those that have waited for their first byte for longer than is usual here."""
        self.lines: dict[str, Line] = {}
        """Who waits for it, by request."""
        self.parked: OrderedDict[Line, None] = OrderedDict()
        """Lines whose request may go on as soon as the host takes more."""
        self.shared_at = float("-inf")
        """When more than one transfer ran."""
        self.overtime = 0
        """Transfers that have been given more time."""
        self._answers = self._silences = 0
        self.heard_at = self.failed_at = float("-inf")
        self.idle_since = float("-inf")
        self.knock: asyncio.TimerHandle | None = None
        """When it is tried again, while it is taken for dead."""
        self._most = most
        self._first_byte_s = 0.0

    @property
    def load(self) -> int:
        """Transfers that count against its limit."""
        return len(self.running) - self.silent

    @property
    def silent_after_s(self) -> float:
        """Seconds without a first byte after which a transfer counts as silent."""
        return max(_SILENT_S, _USUAL * self._first_byte_s)

    def admits(self, now: float) -> bool:
        """Whether one more transfer may start."""
        if not self.breaker.admits(now) or len(self.running) >= self._most:
            return False
        most = self.limit.value
        # Who has been given more time must be done before it is over, too.
        if self.load >= (max(1, min(most // 2, _DRAINED)) if self.overtime else most):
            self.limit.pressed()
            return False
        return True

    def heard_lately(self, now: float) -> bool:
        """Whether it answered anybody in the last seconds."""
        return now - self.heard_at < _LATELY_S

    def failed_lately(self, now: float) -> bool:
        """Whether a transfer failed in the last seconds."""
        return now - self.failed_at < _LATELY_S

    def answered(self, now: float, first_byte_s: float) -> None:
        """The first byte of an answer is there, after so many seconds."""
        known = self._first_byte_s
        self._answers += 1
        self._first_byte_s = known + _WEIGHT * (first_byte_s - known) if known else first_byte_s
        self.heard(now)

    @property
    def silence_is_rare(self) -> bool:
        """Whether nearly all of its answers come in time."""
        return self._answers >= _RARE * self._silences

    def was_silent(self) -> None:
        """A transfer's time is over without a first byte."""
        self._silences += 1
        if self._silences + self._answers > _COUNTED:
            self._silences, self._answers = self._silences // 2, self._answers // 2

    def heard(self, now: float) -> None:
        """A sign of life."""
        self.heard_at = now
        if self.breaker.answered(now):
            logger.warning("host %s answers again", self.name)
            self.limit = Limit(self._most, 1)

    def failed(self, now: float, reason: str, connected: bool) -> bool:
        """It could not be reached, or was silent for long; tells whether it is taken for dead from now on."""
        self.failed_at = now
        opens = (self.breaker.silent if connected else self.breaker.unreachable)(now, reason)
        if opens:
            failures = self.breaker.failures
            logger.warning("host %s is left alone: it failed %s times in a row: %s", self.name, failures, reason)
        return opens
