"""Contents that kill the process which decodes them: remembered, and refused for a while."""

import time
from collections import OrderedDict

from embedding.errors import ItemError
from embedding.url import shown

STRIKES = 2
REMEMBERED_S = 600.0
MOST_REMEMBERED = 10_000


class Poison:
    """Counts, for each content, the preprocessors that died with nothing else in hand.

    One death may be anybody's fault (a machine that goes away), the second in a row is the content's.
    """

    def __init__(self) -> None:
        self._strikes: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def strike(self, content: str) -> None:
        """Notes a death."""
        key = hash(content)
        count, _ = self._strikes.pop(key, (0, 0.0))
        self._strikes[key] = (count + 1, time.monotonic())
        if len(self._strikes) > MOST_REMEMBERED:
            self._strikes.popitem(last=False)

    def forgive(self, content: str) -> None:
        """Forgets the deaths of a content that has been prepared after all."""
        if self.error(content) is None:
            self._strikes.pop(hash(content), None)

    def error(self, content: str) -> ItemError | None:
        """Why a content is refused, if it is."""
        count, since = self._strikes.get(hash(content), (0, 0.0))
        if count < STRIKES:
            return None
        if time.monotonic() - since > REMEMBERED_S:
            del self._strikes[hash(content)]
            return None
        return ItemError(f"{shown(content)} crashed its decoder and is refused for {REMEMBERED_S / 60:.0f} minutes")
