"""Named intervals of the work for one request, for whoever follows it. By default nobody does, and it costs nothing.

Input: intervals in monotonic time, from any thread, with the request to which they belong: `here`, asked for where the
request's context is, goes along with the work to where it is not. Output: calls of the one `Follower`.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Protocol

Request = Any
"""A followed request, known to the follower only; None for one that is not followed."""


class Follower(Protocol):
    """Takes the intervals."""

    def here(self) -> Request | None:
        """The request in whose context the caller runs; None if it is not followed."""

    def passed(self, request: Request, stage: str, began: float, ended: float, told: dict[str, Any]) -> None:
        """A stage has ended; times are in seconds of `time.monotonic`. Called from any thread; must not block."""


_follower: Follower | None = None


def follow(follower: Follower | None) -> None:
    """Has all intervals of this process from now on told to `follower`; None ends it."""
    global _follower
    _follower = follower


def here() -> Request | None:
    """The request in whose context the caller runs; None if nobody follows it."""
    return None if _follower is None else _follower.here()


def passed(request: Request | None, stage: str, began: float, ended: float | None = None, **told: Any) -> None:
    """A stage of a request has ended.

    Args:
        request: what `here` gave.
        stage: its name, one of `embedding.series.Stage`.
        began: seconds of `time.monotonic`.
        ended: likewise; now by default.
        told: what else is known of it: numbers and short texts, never of a client.
    """
    if request is not None and _follower is not None:
        # Whoever follows must not fail the work: it is the device's thread, for one, that says so here.
        with suppress(Exception):
            _follower.passed(request, stage, began, time.monotonic() if ended is None else ended, told)
