"""A circuit breaker: a host that cannot be reached, or says nothing at all, is left alone for a while."""

from __future__ import annotations

import math


class Breaker:
    """Of one host. Closed, until the host is taken for dead; once the pause is over half open: one probe at a time.

    A host is dead when nobody can reach it, `threshold` times in a row, or when it lets everybody wait for a first
    byte: as often, and for `silence_s` besides, as some paths of a host may hang while others are well. Any sign of
    life from it, whoever it is for, closes the breaker and clears the count.

    Args:
        threshold: failures in a row that open it; 0 = it never opens.
        pause_s: seconds for which it is open.
        silence_s: seconds without a byte from the host, after which silence counts.
    """

    def __init__(self, threshold: int, pause_s: float, silence_s: float) -> None:
        self._threshold = threshold or math.inf
        self._pause_s = pause_s
        self._silence_s = silence_s
        self._unreachable = self._silent = 0
        self._quiet_since = self._tried = -math.inf
        self._probing = False
        self.reason = ""
        self.open_until: float | None = None
        """When its pause is over, or was; None = closed."""

    @property
    def is_open(self) -> bool:
        """Whether the host is taken for dead; still so while it is half open."""
        return self.open_until is not None

    @property
    def failures(self) -> int:
        """In a row."""
        return self._unreachable + self._silent

    def admits(self, now: float) -> bool:
        """Whether the host may be tried now."""
        return self.open_until is None or (now >= self.open_until and not self._probing)

    def started(self, now: float) -> None:
        """It is tried."""
        if now - self._tried > self._silence_s:
            self._quiet_since = now  # who was not asked was not silent
        self._tried = now
        self._probing = self.is_open

    def connected(self) -> None:
        """It can be reached."""
        self._unreachable = 0

    def answered(self, now: float) -> bool:
        """A byte of it arrived; tells whether that closed the breaker."""
        was_open = self.is_open
        self._unreachable = self._silent = 0
        self._quiet_since = self._tried = now
        self.open_until = None
        self._probing = False
        return was_open

    def unreachable(self, now: float, reason: str) -> bool:
        """No connection came about; tells whether that opened a closed breaker."""
        self._unreachable += 1
        return self._failed(now, reason, self._unreachable >= self._threshold)

    def silent(self, now: float, reason: str) -> bool:
        """Not a byte came over a connection; tells whether that opened a closed breaker."""
        self._silent += 1
        quiet = now - self._quiet_since >= self._silence_s
        return self._failed(now, reason, quiet and self._silent >= self._threshold)

    def abandoned(self) -> None:
        """An attempt ended without saying anything about the host."""
        self._probing = False

    def _failed(self, now: float, reason: str, dead: bool) -> bool:
        self._tried = now
        self._probing = False
        self.reason = reason
        opens = dead and not self.is_open
        if dead or self.is_open:
            self.open_until = now + self._pause_s
        return opens
