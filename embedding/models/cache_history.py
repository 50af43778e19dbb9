"""What a cache must know of models that it does not hold any more."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict

from embedding.models.model import Model
from embedding.models.spec import ModelSpec

_TRIES, _PAUSE_S = 50, 0.01
_MEASURED_KEPT = 10_000


class Departed:
    """Models that have been let go, of which a forward pass may still hold one."""

    def __init__(self) -> None:
        self._models: list[weakref.ref[Model]] = []

    def add(self, model: Model) -> None:
        """Notes one; it is not kept."""
        self._models = [other for other in self._models if other() is not None]
        self._models.append(weakref.ref(model))

    async def wait(self) -> bool:
        """Lets a forward pass whose caller has hung up run to its end: only then is its model's memory free.

        Returns:
            Whether all are gone after half a second.
        """
        for _ in range(_TRIES):
            self._models = [model for model in self._models if model() is not None]
            if not self._models:
                return True
            await asyncio.sleep(_PAUSE_S)
        return False


class Measured:
    """Bytes that models took when they were loaded: of the latest ten thousand."""

    def __init__(self) -> None:
        self._nbytes: OrderedDict[bytes, int] = OrderedDict()

    def get(self, spec: ModelSpec) -> int | None:
        """None for a model that was never loaded, or too long ago."""
        return self._nbytes.get(spec.identity)

    def remember(self, spec: ModelSpec, nbytes: int) -> None:
        """Notes what a model takes."""
        self._nbytes[spec.identity] = nbytes
        self._nbytes.move_to_end(spec.identity)
        if len(self._nbytes) > _MEASURED_KEPT:
            self._nbytes.popitem(last=False)
