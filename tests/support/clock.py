"""An event loop whose clock jumps to the next timer as soon as nothing else is to be done.

Tests of what happens in time are then exact, and take none: after `await asyncio.sleep(10)` all timers of those ten
seconds have fired, in their order. Not for work in threads or on sockets, for which such a loop does not wait.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    ahead_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if timeout and not events:
            self.ahead_s += timeout
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return super().time() + self._clock.ahead_s


def run_without_waiting(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on a clock of its own."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
