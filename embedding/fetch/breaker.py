"""A circuit breaker for one host: no requests are sent for a while to a host that is unreachable or does not answer.

Input: the outcomes of attempts (connected, answered, unreachable, silent), with their times. Output: `admits`, which
says whether the host may be tried now. It uses no clock and no event loop of its own: all times are arguments, seconds.
"""

from __future__ import annotations

import math


class CircuitBreaker:
    """The breaker of one host: closed at first, open after too many failures, and half open when the pause is over.

    It opens when `threshold` attempts in a row could not connect, or when `threshold` attempts in a row got no byte of
    an answer and no request has got one for `silence_s`. The second condition also needs the time, because some URLs
    of a host may hang while others work. While half open, it admits one attempt at a time as a probe. Any byte from the
    host, of any transfer, closes it and resets the counts.

    Args:
        threshold: failures in a row that open it; 0 = it never opens.
        pause_s: seconds for which it stays open.
        silence_s: seconds without a byte from the host before attempts without an answer can open it.
    """

    def __init__(self, threshold: int, pause_s: float, silence_s: float) -> None:
        self._threshold = threshold or math.inf
        self._pause_s = pause_s
        self._silence_s = silence_s
        self._unreachable = self._silent = 0
        self._silent_since = self._last_attempt = -math.inf
        self._probing = False
        self.reason = ""
        self.open_until: float | None = None
        """Time at which its pause ends or has ended; None = closed."""

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open or half open."""
        return self.open_until is not None

    @property
    def failures(self) -> int:
        """Number of failures in a row."""
        return self._unreachable + self._silent

    def admits(self, now: float) -> bool:
        """Whether an attempt may start now."""
        return self.open_until is None or (now >= self.open_until and not self._probing)

    def started(self, now: float) -> None:
        """An attempt starts."""
        if now - self._last_attempt > self._silence_s:
            self._silent_since = now  # time without attempts does not count as silence
        self._last_attempt = now
        self._probing = self.is_open

    def connected(self) -> None:
        """An attempt has a connection."""
        self._unreachable = 0

    def answered(self, now: float) -> bool:
        """A byte of an answer has arrived. Returns whether this has closed the breaker."""
        was_open = self.is_open
        self._unreachable = self._silent = 0
        self._silent_since = self._last_attempt = now
        self.open_until = None
        self._probing = False
        return was_open

    def unreachable(self, now: float, reason: str) -> bool:
        """An attempt could not connect. Returns whether this has opened a closed breaker."""
        self._unreachable += 1
        return self._failed(now, reason, self._unreachable >= self._threshold)

    def silent(self, now: float, reason: str) -> bool:
        """An attempt was connected but got no byte. Returns whether this has opened a closed breaker."""
        self._silent += 1
        silent_for_long = now - self._silent_since >= self._silence_s
        return self._failed(now, reason, silent_for_long and self._silent >= self._threshold)

    def abandoned(self) -> None:
        """An attempt ended without a result that concerns the host, for example because it was cancelled."""
        self._probing = False

    def _failed(self, now: float, reason: str, trips: bool) -> bool:
        self._last_attempt = now
        self._probing = False
        self.reason = reason
        opens = trips and not self.is_open
        if trips or self.is_open:
            self.open_until = now + self._pause_s
        return opens
