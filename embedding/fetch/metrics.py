"""Downloads in numbers: how long they take and wait, their bytes, and why they fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from embedding import series, trail
from embedding.errors import ErrorKind, MediaError
from embedding.fetch.headers import BadHeaders
from embedding.fetch.redirects import RedirectError
from embedding.fetch.reply import FailureKind, TransportError
from embedding.fetch.scheduler import HostUnavailable, Scheduler
from embedding.meter import Meter, Readings

_FAILURES = {
    FailureKind.NAME: ErrorKind.NAME,
    FailureKind.CONNECTION: ErrorKind.CONNECTION,
    FailureKind.TLS: ErrorKind.TLS,
    FailureKind.SILENCE: ErrorKind.CONNECTION,
    FailureKind.ANSWER: ErrorKind.BAD_ANSWER,
    FailureKind.TOO_LARGE: ErrorKind.TOO_LARGE,
    FailureKind.CLOSED: ErrorKind.INTERNAL,
}
_EXCEPTIONS: dict[type[Exception], ErrorKind] = {
    BadHeaders: ErrorKind.BAD_HEADERS,
    RedirectError: ErrorKind.REDIRECTS,
    HostUnavailable: ErrorKind.HOST_LEFT_ALONE,
}


class FetchMetrics:
    """Counts the downloads of one process.

    Args:
        meter: where they are counted.
        scheduler: knows what waits and runs.
    """

    def __init__(self, meter: Meter, scheduler: Scheduler) -> None:
        self._meter = meter

        def now() -> Readings:
            counts = scheduler.counts()
            return {
                series.WAITING: {(series.Waiting.DOWNLOAD,): counts.waiting},
                series.DOWNLOADS_ACTIVE: {(): counts.running},
                series.HOSTS_LIMITED: {(): counts.limited},
                series.BREAKERS_OPEN: {(): counts.left_alone},
            }

        meter.watch(now)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Counts an error that is raised in the context."""
        try:
            yield
        except MediaError as error:
            self._meter.add(series.ERRORS, 1, series.ErrorStage.DOWNLOAD, error.kind)
            raise

    def ended(self, seconds: float, host_s: float) -> None:
        """A download has ended, with or without success.

        Args:
            seconds: since it was asked for.
            host_s: that hosts have taken of them; in the others it waited for its turn, or for memory.
        """
        self._meter.observe(series.STAGE_SECONDS, seconds - host_s, series.Stage.DOWNLOAD_WAIT, series.Lane.IMAGE)
        self._meter.observe(series.STAGE_SECONDS, host_s, series.Stage.DOWNLOAD, series.Lane.IMAGE)
        if request := trail.here():
            began = time.monotonic() - seconds
            trail.passed(request, series.Stage.DOWNLOAD, began, waited_s=seconds - host_s, host_s=host_s)

    def received(self, nbytes: int) -> None:
        """A transfer has ended, of which so many bytes of the body have arrived."""
        if nbytes:
            self._meter.add(series.DOWNLOAD_BYTES, nbytes)


def kind_of(error: Exception) -> ErrorKind:
    """The kind of a download's failure; a timeout if it has no other."""
    if isinstance(error, TransportError):
        return _FAILURES[error.kind]
    return _EXCEPTIONS.get(type(error), ErrorKind.TIMEOUT)
