"""A time limit that runs only while somebody else is to blame for the wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Clock:
    """Counts time while it runs, and ends its scope when the time is over.

    Args:
        allowed_s: seconds.
        scope: what it ends: an entered `asyncio.timeout(None)`.
        more: called when the time is over; gives seconds to go on for, 0 if there are none.
    """

    def __init__(self, allowed_s: float, scope: asyncio.Timeout, more: Callable[[], float]) -> None:
        self._allowed_s = allowed_s
        self._scope = scope
        self._more = more
        self._loop = asyncio.get_running_loop()
        self._counted_s = 0.0
        self._since: float | None = None
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def spent_s(self) -> float:
        """Seconds that it has run."""
        return self._counted_s + (0.0 if self._since is None else self._loop.time() - self._since)

    def run(self) -> None:
        """Starts it, or lets it go on."""
        if self._since is None:
            self._since = self._loop.time()
            self._set_alarm()

    def pause(self) -> None:
        """Stops it."""
        self._counted_s = self.spent_s
        self._since = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _set_alarm(self) -> None:
        self._alarm = self._loop.call_later(self._allowed_s - self.spent_s, self._over)

    def _over(self) -> None:
        more = self._more()
        if more > 0:
            self._allowed_s += more
            self._set_alarm()
        else:
            self._scope.reschedule(self._loop.time())
