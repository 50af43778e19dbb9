"""A thread for slow calls of one model, which therefore delay no other model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from embedding.errors import Fault, RequestError

MAX_WAIT_S = 1.0
"""Expected wait beyond which slow calls are refused: a waiting request holds a slot of the encoder that others need."""
_SMOOTHING = 0.5


class DedicatedThread(ThreadPoolExecutor):
    """An executor with one thread. If calls exceed their expected time, it refuses those that would wait too long."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="tokenize")
        self._waiting_lock = threading.Lock()
        self._waiting = 0
        self._excess_s = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`.

        Raises:
            RequestError: OVERLOADED: the calls that wait already are expected to take too long.
        """
        with self._waiting_lock:
            if self._waiting * self._excess_s > MAX_WAIT_S:
                raise RequestError(
                    Fault.OVERLOADED, "the model's tokenizer is slow, and others wait for it already; try again later"
                )
            self._waiting += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._finished(None)
            raise
        future.add_done_callback(self._finished)
        return future

    def spent(self, excess_s: float) -> None:
        """Reports by how many seconds a call has exceeded its expected time."""
        self._excess_s += _SMOOTHING * (max(excess_s, 0.0) - self._excess_s)

    def _finished(self, _: object) -> None:
        with self._waiting_lock:
            self._waiting -= 1
