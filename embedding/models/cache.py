"""The models of one encoder replica: loaded once however many ask, counted in bytes, never taken from a user.

Lives on one event loop; only the loading itself runs in a thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from embedding.errors import Fault, RequestError
from embedding.models.model import Model
from embedding.models.spec import ModelInfo, ModelSpec


@dataclass(slots=True)
class _Entry:
    model: Model
    users: int = 0


class ModelCache:
    """Loaded models, the least recently used first to go.

    Args:
        load: makes a model; blocks, raises RequestError.
        executor: where `load` runs.
        budget_bytes: what all weights together may take; 0 is no limit.
    """

    def __init__(self, load: Callable[[ModelSpec], Model], executor: Executor, budget_bytes: int = 0) -> None:
        self._load = load
        self._executor = executor
        self._budget = budget_bytes
        self._entries: OrderedDict[ModelSpec, _Entry] = OrderedDict()
        self._loading: dict[ModelSpec, asyncio.Task[_Entry]] = {}
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def use(self, spec: ModelSpec) -> AsyncIterator[Model]:
        """The model of `spec`, loaded if need be, and kept for as long as the context lasts.

        Raises:
            RequestError: REFUSED, if it cannot be loaded or is larger than the whole budget.
        """
        entry = self._entries.get(spec)
        if entry is None:
            entry = await self._loaded(spec)
        else:
            self._entries.move_to_end(spec)
        entry.users += 1
        try:
            yield entry.model
        finally:
            entry.users -= 1
            if entry.users == 0:
                self._freed.set()

    def infos(self) -> list[ModelInfo]:
        """What is loaded, least recently used first."""
        return [entry.model.info for entry in self._entries.values()]

    def eject(self, chosen: Callable[[ModelInfo], bool]) -> list[ModelInfo]:
        """Forgets the chosen models. One in use goes when its last user is done; the next request loads it anew."""
        gone = [spec for spec, entry in self._entries.items() if chosen(entry.model.info)]
        return [self._entries.pop(spec).model.info for spec in gone]

    async def _loaded(self, spec: ModelSpec) -> _Entry:
        task = self._loading.get(spec)
        if task is None:
            task = asyncio.create_task(self._load_once(spec))
            self._loading[spec] = task
            task.add_done_callback(lambda _: self._loading.pop(spec, None))
        # Shielded: the first caller's hanging up must not cost the others their model.
        return await asyncio.shield(task)

    async def _load_once(self, spec: ModelSpec) -> _Entry:
        model = await asyncio.get_running_loop().run_in_executor(self._executor, self._load, spec)
        if self._budget and model.info.nbytes > self._budget:
            raise RequestError(
                Fault.REFUSED,
                f"Unable to load model '{spec.name}': its weights take {model.info.nbytes} bytes, "
                f"more than the {self._budget} that this server keeps for all models",
            )
        while not self._make_room(model.info.nbytes):
            self._freed.clear()
            await self._freed.wait()
        entry = _Entry(model)
        self._entries[spec] = entry
        return entry

    def _make_room(self, nbytes: int) -> bool:
        """Evicts what nobody uses until `nbytes` more fit; False if models in use stand in the way."""
        for spec in list(self._entries):
            if self._fits(nbytes):
                break
            if self._entries[spec].users == 0:
                del self._entries[spec]
        return self._fits(nbytes)

    def _fits(self, nbytes: int) -> bool:
        used = sum(entry.model.info.nbytes for entry in self._entries.values())
        return not self._budget or used + nbytes <= self._budget
