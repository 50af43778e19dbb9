"""Remembers items that crash their decoder or take too long to decode, and refuses them for ten minutes."""

import time
from collections import OrderedDict

from embedding import series
from embedding.errors import CostlyError, CrashError, ErrorKind, ItemError
from embedding.meter import Meter
from embedding.shown import shown

REMEMBERED_S = 600.0
MOST_REMEMBERED = 10_000


class Poison:
    """The items that crashed a decoder which was decoding nothing else, or that took too long.

    Args:
        meter: counts the items that are refused.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._seen: OrderedDict[int, tuple[float, str]] = OrderedDict()

    def remember(self, item: str, error: ItemError) -> None:
        """Refuses an item from now on, if its error would cost as much to find again."""
        if isinstance(error, CrashError):
            self._remember(item, "crashed its decoder")
        elif isinstance(error, CostlyError):
            self._remember(item, "took too long to decode")

    def _remember(self, item: str, what: str) -> None:
        self._seen.pop(hash(item), None)
        self._seen[hash(item)] = time.monotonic(), what
        if len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)

    def error(self, item: str) -> ItemError | None:
        """The error of an item that is refused, else None."""
        seen = self._seen.get(hash(item))
        if seen is None:
            return None
        since, what = seen
        if time.monotonic() - since > REMEMBERED_S:
            del self._seen[hash(item)]
            return None
        self._meter.add(series.ERRORS, 1, series.ErrorStage.INGRESS, ErrorKind.POISON)
        return ItemError(f"{shown(item)} {what} and is refused for {REMEMBERED_S / 60:.0f} minutes")
