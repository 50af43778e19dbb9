"""A thread for what one model's requests may wait for, and no other model's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from embedding.errors import Fault, RequestError

MAX_WAIT_S = 1.0
"""Of slow calls that may queue up. Whoever waits here holds a place in the encoder that others need."""
_SHARE = 0.5


class OwnThread(ThreadPoolExecutor):
    """One thread, which takes no more calls than it gets done soon, if they take longer than they should."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="tokenize")
        self._counting = threading.Lock()
        self._waiting = 0
        self._excess_s = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`.

        Raises:
            RequestError: OVERLOADED: those that wait already will take too long.
        """
        with self._counting:
            if self._waiting * self._excess_s > MAX_WAIT_S:
                raise RequestError(
                    Fault.OVERLOADED, "the model's tokenizer is slow, and others wait for it already; try again later"
                )
            self._waiting += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._left(None)
            raise
        future.add_done_callback(self._left)
        return future

    def spent(self, excess_s: float) -> None:
        """Says how much longer than it should a call has taken, in seconds."""
        self._excess_s += _SHARE * (max(excess_s, 0.0) - self._excess_s)

    def _left(self, _: object) -> None:
        with self._counting:
            self._waiting -= 1
