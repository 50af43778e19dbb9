"""Measures how long a load takes until its model is ready, and how much of that it waits for files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class LoadTime:
    """The clock of one load.

    Args:
        started: `time.perf_counter()` at its first step.
        download_s: seconds of downloading files, or of waiting for another process that downloads them.
        waited_s: seconds of waiting for memory.
    """

    started: float = field(default_factory=time.perf_counter)
    download_s: float = 0.0
    waited_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first step."""
        return time.perf_counter() - self.started


_current: ContextVar[LoadTime | None] = ContextVar("load_time", default=None)


@contextmanager
def load_time() -> Iterator[LoadTime]:
    """The clock of the load that the caller is a part of, else a new one.

    It is in a context variable, since the steps of one load run in several threads: the files are often downloaded when
    the model's size is estimated, before it is loaded.
    """
    clock = _current.get()
    if clock is not None:
        yield clock
        return
    clock = LoadTime()
    token = _current.set(clock)
    try:
        yield clock
    finally:
        _current.reset(token)


def downloading() -> AbstractContextManager[None]:
    """Counts the time within the context as download time of the current load, if any. Not to be nested."""
    return _counted("download_s")


def waiting() -> AbstractContextManager[None]:
    """Counts the time within the context as time in which the current load, if any, waits for memory."""
    return _counted("waited_s")


@contextmanager
def _counted(total: Literal["download_s", "waited_s"]) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        clock = _current.get()
        if clock is not None:
            setattr(clock, total, getattr(clock, total) + time.perf_counter() - started)
