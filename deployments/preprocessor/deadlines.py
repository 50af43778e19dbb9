"""When the time of each request is over, as its calls to one process tell."""

import asyncio
from collections import OrderedDict

_MOST = 10_000
"""Requests that are remembered: those that came last."""


class Deadlines:
    """A call says how much time its request has left, and not how long it has been on its way itself. So the calls of
    one request are held to the earliest end that any of them has given. It belongs to one event loop.
    """

    def __init__(self) -> None:
        self._ends: OrderedDict[str, float] = OrderedDict()

    def left_s(self, request: str, within_s: float | None) -> float | None:
        """Seconds that are left to a call which arrives now; None = no end.

        Args:
            request: its name.
            within_s: seconds that were left when the call was sent.
        """
        if within_s is None:
            return None
        now = asyncio.get_running_loop().time()
        end = min(now + within_s, self._ends.get(request, now + within_s))
        self._ends[request] = end
        if len(self._ends) > _MOST:
            self._ends.popitem(last=False)
        return max(0.0, end - now)
