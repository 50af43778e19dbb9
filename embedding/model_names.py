"""Names of models as values of a tag: so few at a time that no client can fill a server of metrics with them.

Names that a client chooses need not be models that anybody uses: a model of type `random` has any name. So the names
that are counted most stay, and those that come once share one value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from embedding.shown import shown, without_credentials

MOST = 50
"""Names at a time."""
OTHER = "other"
"""The value for all the others."""
_CANDIDATES = 1000
"""Other names that are counted, to notice one that is used a lot."""
_PAUSE_S = 60.0
"""Between two replacements of a name. Each makes a new series, which Ray and Prometheus keep for a while."""
_HALF_LIFE_S = 3600.0
"""After this time without use, a name counts half."""
_MORE_OFTEN = 2.0
"""A name replaces another if it is used this many times as often: two that are used alike would take turns."""
_CHARS = 100


class ModelNames:
    """The names that have a value of their own: the first ones, and later those that are used most.

    Args:
        forget: called with a name that has a value of its own no longer.
        clock: gives monotonic time in seconds.
    """

    def __init__(self, forget: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._forget = forget
        self._clock = clock
        self._uses: dict[str, float] = {}
        self._candidates: dict[str, float] = {}
        self._aged_at = clock()

    def used(self, name: str) -> str:
        """Counts a use of a model, and returns the value that stands for it: its name or `OTHER`."""
        name = short(name)
        if name in self._uses:
            self._uses[name] += 1
            return name
        if len(self._uses) < MOST:
            self._uses[name] = 1.0
            return name
        return self._candidate(name)

    def known(self, name: str) -> str:
        """As `used`, without counting."""
        name = short(name)
        return name if name in self._uses else OTHER

    def _candidate(self, name: str) -> str:
        candidates = self._candidates
        passed = self._clock() - self._aged_at
        if passed >= _PAUSE_S:
            self._age(passed)
        if name not in candidates and len(candidates) >= _CANDIDATES:
            del candidates[min(candidates, key=candidates.__getitem__)]
        candidates[name] = candidates.get(name, 0.0) + 1
        if passed >= _PAUSE_S:
            self._replace(max(candidates, key=candidates.__getitem__))
        return self.known(name)

    def _replace(self, name: str) -> None:
        """Gives a name the place of the one that is used least, if it is used a lot more."""
        least = min(self._uses, key=self._uses.__getitem__)
        if self._candidates[name] >= _MORE_OFTEN * self._uses[least]:
            del self._uses[least]
            self._uses[name] = self._candidates.pop(name)
            self._forget(least)

    def _age(self, seconds: float) -> None:
        self._aged_at += seconds
        factor = 0.5 ** (seconds / _HALF_LIFE_S)
        for counted in (self._uses, self._candidates):
            for name in counted:
                counted[name] *= factor


def largest(sizes: Iterable[tuple[str, float]]) -> dict[tuple[str, ...], float]:
    """Sizes by name: the largest ones by themselves, the others together as `OTHER`. Those of equal names are added."""
    by_name: dict[str, float] = {}
    for name, size in sizes:
        by_name[short(name)] = by_name.get(short(name), 0.0) + size
    ranked = sorted(by_name, key=lambda name: -by_name[name])
    found: dict[tuple[str, ...], float] = {(name,): by_name[name] for name in ranked[:MOST]}
    for name in ranked[MOST:]:
        found[OTHER,] = found.get((OTHER,), 0.0) + by_name[name]
    return found


def short(name: str) -> str:
    """A name in the form of a tag's value: without credentials, which a URL may hold, on one line, and not too long."""
    name = shown(without_credentials(name))
    return name if len(name) <= _CHARS else f"{name[: _CHARS - 1]}…"
