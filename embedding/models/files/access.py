"""Which credentials a source has accepted, for when it cannot be asked."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from blake3 import blake3

_REMEMBERED = 10_000


class KeyedHash:
    """Tells equal secrets from different ones without keeping them. Its key is this object's own, and nowhere else."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def __call__(self, *parts: str | None) -> str:
        """32 hex digits; None and "" differ."""
        text = repr(parts)
        return blake3(text.encode("utf-8", "backslashreplace"), key=self._key).hexdigest(16)


class Access:
    """What has been confirmed in this process. Thread-safe."""

    def __init__(self) -> None:
        self._hash = KeyedHash()
        self._confirmed: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def confirm(self, place: str, token: str | None) -> None:
        """Notes that `place` has given something to who brings `token`."""
        digest = self._hash(place, token)
        with self._lock:
            self._confirmed[digest] = None
            self._confirmed.move_to_end(digest)
            if len(self._confirmed) > _REMEMBERED:
                self._confirmed.popitem(last=False)

    def deny(self, place: str, token: str | None) -> None:
        """Notes that it does not any more."""
        with self._lock:
            self._confirmed.pop(self._hash(place, token), None)

    def is_confirmed(self, place: str, token: str | None) -> bool:
        """Whether it once did, and has not refused since."""
        return self._hash(place, token) in self._confirmed
