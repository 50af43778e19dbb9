"""What the model cache remembers of models that it no longer holds."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict

from embedding.models.model import Model
from embedding.models.spec import ModelSpec

_TRIES, _PAUSE_S = 50, 0.01
_MEASURED_KEPT = 10_000


class DroppedModels:
    """Models that the cache has dropped. A forward pass that still runs may keep one of them alive."""

    def __init__(self) -> None:
        self._models: list[weakref.ref[Model]] = []

    def add(self, model: Model) -> None:
        """Remembers a model, by a weak reference."""
        self._models = [other for other in self._models if other() is not None]
        self._models.append(weakref.ref(model))

    async def wait(self) -> bool:
        """Waits for forward passes of cancelled requests: the memory of their models is free only when they end.

        Returns:
            Whether all dropped models are freed after at most half a second.
        """
        for _ in range(_TRIES):
            self._models = [model for model in self._models if model() is not None]
            if not self._models:
                return True
            await asyncio.sleep(_PAUSE_S)
        return False


class MeasuredSizes:
    """Bytes that models took when they were loaded, for the latest ten thousand models."""

    def __init__(self) -> None:
        self._nbytes: OrderedDict[bytes, int] = OrderedDict()

    def get(self, spec: ModelSpec) -> int | None:
        """None for a model that was never loaded, or whose size has been forgotten."""
        return self._nbytes.get(spec.identity)

    def remember(self, spec: ModelSpec, nbytes: int) -> None:
        """Stores the size of a model."""
        self._nbytes[spec.identity] = nbytes
        self._nbytes.move_to_end(spec.identity)
        if len(self._nbytes) > _MEASURED_KEPT:
            self._nbytes.popitem(last=False)
