"""Contents that kill the process which decodes them: remembered, and refused for a while."""

import time
from collections import OrderedDict

from embedding.errors import ItemError
from embedding.url import shown

REMEMBERED_S = 600.0
MOST_REMEMBERED = 10_000


class Poison:
    """The contents that were seen to crash a decoder with nothing else in its hands."""

    def __init__(self) -> None:
        self._since: OrderedDict[int, float] = OrderedDict()

    def remember(self, content: str) -> None:
        """Refuses a content from now on."""
        self._since.pop(hash(content), None)
        self._since[hash(content)] = time.monotonic()
        if len(self._since) > MOST_REMEMBERED:
            self._since.popitem(last=False)

    def error(self, content: str) -> ItemError | None:
        """Why a content is refused, if it is."""
        since = self._since.get(hash(content))
        if since is None:
            return None
        if time.monotonic() - since > REMEMBERED_S:
            del self._since[hash(content)]
            return None
        return ItemError(f"{shown(content)} crashed its decoder and is refused for {REMEMBERED_S / 60:.0f} minutes")
