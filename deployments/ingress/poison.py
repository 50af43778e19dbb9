"""Contents that kill the process which decodes them, or take too long: remembered, and refused for a while."""

import time
from collections import OrderedDict

from embedding.errors import CostlyError, CrashError, ItemError
from embedding.shown import shown

REMEMBERED_S = 600.0
MOST_REMEMBERED = 10_000


class Poison:
    """The contents that were seen to crash a decoder with nothing else in its hands, or to keep it for too long."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, tuple[float, str]] = OrderedDict()

    def remember(self, content: str, error: ItemError) -> None:
        """Refuses a content from now on, if its error is one that it would have again, at the same price."""
        if isinstance(error, CrashError):
            self._remember(content, "crashed its decoder")
        elif isinstance(error, CostlyError):
            self._remember(content, "took too long to decode")

    def _remember(self, content: str, what: str) -> None:
        self._seen.pop(hash(content), None)
        self._seen[hash(content)] = time.monotonic(), what
        if len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)

    def error(self, content: str) -> ItemError | None:
        """Why a content is refused, if it is."""
        seen = self._seen.get(hash(content))
        if seen is None:
            return None
        since, what = seen
        if time.monotonic() - since > REMEMBERED_S:
            del self._seen[hash(content)]
            return None
        return ItemError(f"{shown(content)} {what} and is refused for {REMEMBERED_S / 60:.0f} minutes")
