"""Waiting for a condition, in place of sleeping for a while."""

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def still(spent: Callable[[], float]) -> bool:
    """Whether half a second passes with next to no CPU time."""
    before = spent()
    time.sleep(0.5)
    return spent() - before < 0.05
