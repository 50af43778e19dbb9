"""What one load has been given: its files stay on the disk, and none is asked for twice, until its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path


class Session:
    """Leases and answers of one load. Its steps run in several threads, one after the other, which share it by their
    context; it ends with the last of them, though the load may have been given up before."""

    def __init__(self) -> None:
        self._leases = ExitStack()
        self._answers: dict[Hashable, Path] = {}
        self._users = 0
        self._lock = threading.Lock()

    def keep(self, lease: AbstractContextManager[None]) -> None:
        """Enters a lease, which is left at the session's end."""
        with self._lock:
            self._leases.enter_context(lease)

    def once(self, question: Hashable, get: Callable[[], Path]) -> Path:
        """What `get` gave the first time that this was asked. Errors are not remembered."""
        if question not in self._answers:
            self._answers[question] = get()
        return self._answers[question]

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Keeps it open."""
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
    """The session of the present load, if there is one."""
    return _current.get()


@contextmanager
def session() -> Iterator[None]:
    """The session of the load that this is a part of, else a new one."""
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
    """`Session.once` of the present load; outside of one, `get` is asked each time."""
    present = _current.get()
    return get() if present is None else present.once(question, get)
