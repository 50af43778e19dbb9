"""The session of one load: until it ends, its files stay on the disk, and none is requested twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path


class Session:
    """Leases and results of one load. The steps of a load run in several threads, one after the other, which share the
    session by their context. It ends with the last of them, even if the load was cancelled before."""

    def __init__(self) -> None:
        self._leases = ExitStack()
        self._answers: dict[Hashable, Path] = {}
        self._users = 0
        self._lock = threading.Lock()

    def keep(self, lease: AbstractContextManager[None]) -> None:
        """Enters a lease, and leaves it when the session ends."""
        with self._lock:
            self._leases.enter_context(lease)

    def once(self, question: Hashable, get: Callable[[], Path]) -> Path:
        """The result of `get`, which is called only for the first equal `question`. Errors are not remembered."""
        if question not in self._answers:
            self._answers[question] = get()
        return self._answers[question]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Keeps the session open until the context ends."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                last = self._users == 0
            if last:
                self._leases.close()


_current: ContextVar[Session | None] = ContextVar("session", default=None)


def current() -> Session | None:
    """The session of the current load, if there is one."""
    return _current.get()


@contextmanager
def session() -> Iterator[None]:
    """Joins the session of the load that the caller is a part of, else starts a new one."""
    present = _current.get()
    if present is not None:
        with present.joined():
            yield
        return
    present = Session()
    token = _current.set(present)
    try:
        with present.joined():
            yield
    finally:
        _current.reset(token)


def once(question: Hashable, get: Callable[[], Path]) -> Path:
    """`Session.once` of the current load; without one, `get` is called each time."""
    present = _current.get()
    return get() if present is None else present.once(question, get)
