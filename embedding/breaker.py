"""A circuit breaker per host: one that keeps failing is left alone for a while, so that it delays nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_LONGEST_HOST = 300
"""Characters of a host and its port; DNS has names of 253."""


@dataclass(slots=True)
class _Failing:
    """A host that failed the last time it was tried."""

    failures: int = 0
    reason: str = ""
    open_until: float = 0.0
    probing: bool = False


class Breaker:
    """Remembers hosts that fail in a row. Hosts that work cost nothing.

    Closed, until `threshold` failures in a row open it; after `pause_s` it is half open and lets one probe
    through, whose success closes it and whose failure opens it again.

    Args:
        threshold: failures in a row that open the breaker.
        pause_s: seconds for which an open breaker refuses.
        max_hosts: failing hosts that are remembered; the oldest is forgotten first.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        threshold: int,
        pause_s: float,
        max_hosts: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._pause_s = pause_s
        self._max_hosts = max_hosts
        self._clock = clock
        self._failing: dict[str, _Failing] = {}

    def refusal(self, host: str) -> str | None:
        """Why `host` is not to be tried now; None if it may be.

        Who gets None must report the outcome with `succeeded`, `failed` or `abandoned`: it may be the probe.
        """
        state = self._failing.get(host)
        if state is None or state.failures < self._threshold:
            return None
        if state.probing or self._clock() < state.open_until:
            return (
                f"its host failed {state.failures} times in a row and is left alone for a few seconds "
                f"(last failure: {state.reason})"
            )
        state.probing = True
        return None

    def succeeded(self, host: str) -> None:
        """`host` answered."""
        if self._failing:
            self._failing.pop(host, None)

    def failed(self, host: str, reason: str) -> None:
        """`host` could not be reached or did not answer in time."""
        state = self._failing.get(host)
        if state is None and len(host) > _LONGEST_HOST:
            return  # it cannot be a name, so trying it costs nothing; and what a stranger makes up has no end
        if state is None:
            self._forget_oldest()
            state = self._failing[host] = _Failing()
        state.failures += 1
        state.reason = reason[:_LONGEST_HOST]
        state.probing = False
        if state.failures >= self._threshold:
            state.open_until = self._clock() + self._pause_s

    def abandoned(self, host: str) -> None:
        """The attempt ended without saying anything about `host`: its caller went away."""
        state = self._failing.get(host)
        if state is not None:
            state.probing = False

    def _forget_oldest(self) -> None:
        if len(self._failing) >= self._max_hosts:
            del self._failing[next(iter(self._failing))]
