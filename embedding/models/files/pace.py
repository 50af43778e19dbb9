"""The minimum rate of a download: a server that sends a byte now and then must not hold a loading thread for hours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from embedding.models.files.options import LoadOptions


class TooSlow(Exception):
    """The text says what was expected, and names the setting."""


class Pace:
    """The minimum rate of one download: so many bytes, or the rest of the file, within each window of time.

    Args:
        options: `min_download_bytes_per_s`, `download_window_s`; `read_timeout_s` is the grace until the first byte.
    """

    def __init__(self, options: LoadOptions) -> None:
        self._rate = options.min_download_bytes_per_s
        self._window_s = options.download_window_s
        self._come = 0
        self.step_bytes = min(2**20, max(1, int(self._rate * self._window_s / 8))) if self._rate else 2**20
        """How many bytes to read at a time, for a reader that blocks until it has all of them."""
        self._deadline = time.monotonic() + self._window_s + options.read_timeout_s if self._rate else float("inf")

    def advance(self, nbytes: int) -> None:
        """Counts bytes that have arrived.

        Raises:
            TooSlow: fewer than the minimum arrived in the window that has passed.
        """
        self.check()
        self._come += nbytes
        if self._rate and self._come >= self._rate * self._window_s:
            self._come = 0
            self._deadline = time.monotonic() + self._window_s

    def check(self) -> None:
        """Raises TooSlow, if the window has passed."""
        if self.left_s <= 0:
            raise self.error()

    @property
    def left_s(self) -> float:
        """Seconds until the window is over; infinite without a least rate."""
        return self._deadline - time.monotonic()

    def error(self) -> TooSlow:
        """The exception for callers that watch `left_s` themselves."""
        return TooSlow(
            f"it is slower than {self._rate} bytes/s, averaged over {self._window_s:g} s (the settings "
            "min_download_bytes_per_s and download_window_s)"
        )


class Watchdog:
    """Ends a transfer that blocks its thread: calls `stop`, in a thread of its own, when the pace is too slow.

    with Watchdog(pace, stop) as watchdog:
        ...
    watchdog.too_slow
    """

    def __init__(self, pace: Pace, stop: Callable[[], object]) -> None:
        self._pace = pace
        self._stop = stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="download-pace", daemon=True)
        self.too_slow = False

    def _watch(self) -> None:
        while (left := self._pace.left_s) > 0:
            if self._over.wait(min(left, threading.TIMEOUT_MAX)):
                return
        self.too_slow = True
        with suppress(Exception):  # it has just ended by itself
            self._stop()

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
