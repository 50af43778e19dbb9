"""A stopwatch with a time limit, which can be paused: it measures only the time that a host takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Stopwatch:
    """Measures the time while it runs, and lets a timeout expire at the limit. It belongs to the running event loop.

    Args:
        limit_s: the time limit, in seconds.
        scope: the timeout that expires: an entered `asyncio.timeout(None)`.
        on_expired: called at the limit; gives the seconds by which the limit is extended, 0 for none.
    """

    def __init__(self, limit_s: float, scope: asyncio.Timeout, on_expired: Callable[[], float]) -> None:
        self._limit_s = limit_s
        self._scope = scope
        self._on_expired = on_expired
        self._loop = asyncio.get_running_loop()
        self._accumulated_s = 0.0
        self._started_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds for which it has run."""
        return self._accumulated_s + (0.0 if self._started_at is None else self._loop.time() - self._started_at)

    def start(self) -> None:
        """Starts or resumes it."""
        if self._started_at is None:
            self._started_at = self._loop.time()
            self._set_timer()

    def pause(self) -> None:
        """Pauses it; `start` resumes it."""
        self._accumulated_s = self.elapsed_s
        self._started_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(self._limit_s - self.elapsed_s, self._expired)

    def _expired(self) -> None:
        extension = self._on_expired()
        if extension > 0:
            self._limit_s += extension
            self._set_timer()
        else:
            self._scope.reschedule(self._loop.time())
