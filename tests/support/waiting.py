"""Waiting for a condition, in place of sleeping for a while."""

import asyncio
import inspect
import time
from collections.abc import Callable

PAUSE_S = 0.005


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits until the condition holds; a condition that must hold on the way is an assertion in it.

    Raises:
        AssertionError: it did not hold in time; the message shows its source.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, _message(condition, seconds)
        time.sleep(PAUSE_S)


async def until_async(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """As `until`, while the event loop goes on."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, _message(condition, seconds)
        await asyncio.sleep(PAUSE_S)


def _message(condition: Callable[[], bool], seconds: float) -> str:
    source = inspect.getsource(condition) if inspect.isfunction(condition) else repr(condition)
    return f"not within {seconds:g} s: {' '.join(source.split())}"


def holds(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition is true each time that it is looked at, for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not condition():
            return False
        time.sleep(0.05)
    return True
