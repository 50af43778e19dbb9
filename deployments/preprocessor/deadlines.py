"""The deadline of each request, from what its calls to one process say."""

import asyncio
from collections import OrderedDict

_MOST = 10_000
"""Requests that are remembered: the most recent ones."""


class Deadlines:
    """A call carries the seconds that its request had left when the call was sent; how long the call was under way is
    unknown. All calls of one request are therefore held to the earliest deadline that any of them has given. Belongs to
    one event loop.
    """

    def __init__(self) -> None:
        self._ends: OrderedDict[str, float] = OrderedDict()

    def left_s(self, request: str, within_s: float | None) -> float | None:
        """Seconds that are left to a call which arrives now; None = no deadline.

        Args:
            request: its name.
            within_s: seconds that were left when the call was sent; None = no deadline.
        """
        if within_s is None:
            return None
        now = asyncio.get_running_loop().time()
        end = min(now + within_s, self._ends.get(request, now + within_s))
        self._ends[request] = end
        if len(self._ends) > _MOST:
            self._ends.popitem(last=False)
        return max(0.0, end - now)
