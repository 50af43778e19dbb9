"""Remembers which credentials a source has accepted, for times when the source cannot be reached."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from blake3 import blake3

_MAX_REMEMBERED = 10_000


class KeyedHash:
    """Hashes secrets, so that equal ones can be recognised without storing them. The random key exists only here."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def __call__(self, *parts: str | None) -> str:
        """The hash of several secrets, 32 hex digits; None and "" differ."""
        text = repr(parts)
        return blake3(text.encode("utf-8", "backslashreplace"), key=self._key).hexdigest(16)


class Access:
    """Which tokens have been accepted, during the lifetime of this object. Thread-safe."""

    def __init__(self) -> None:
        self._hash = KeyedHash()
        self._confirmed: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def confirm(self, source: str, token: str | None) -> None:
        """Records that `source` has accepted `token`."""
        digest = self._hash(source, token)
        with self._lock:
            self._confirmed[digest] = None
            self._confirmed.move_to_end(digest)
            if len(self._confirmed) > _MAX_REMEMBERED:
                self._confirmed.popitem(last=False)

    def deny(self, source: str, token: str | None) -> None:
        """Records that `source` has refused `token`."""
        with self._lock:
            self._confirmed.pop(self._hash(source, token), None)

    def is_confirmed(self, source: str, token: str | None) -> bool:
        """Whether `source` has accepted `token`, and has not refused it since."""
        return self._hash(source, token) in self._confirmed
