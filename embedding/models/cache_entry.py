"""One entry of the model cache, and the statistics of the cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from embedding.models.model import Model
from embedding.models.spec import ModelInfo, ModelSpec

_QUICK_CHARS = 4_000_000


@dataclass(slots=True)
class CacheStats:
    """Counters since the start, and current sizes; for metrics.

    Args:
        loads: models loaded.
        failed_loads: loads that ended in an error.
        load_seconds: duration of all loads together, each from its first step until the model was ready: with its
            download, its wait for memory and its warm-up.
        evictions: models evicted to free memory, or because there were too many.
        ejections: models that a client ejected.
        out_of_memory: loads that filled the device although the budget allowed them, so that all idle models were
            evicted.
        bytes: weights of all models, and the reservations of those being loaded.
        budget_bytes: limit of `bytes`; 0 is no limit.
        waiting: loads that wait for memory.
    """

    loads: int = 0
    failed_loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0
    ejections: int = 0
    out_of_memory: int = 0
    bytes: int = 0
    budget_bytes: int = 0
    waiting: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One model, from the first request for it until its last user is done; `nbytes` counts for all that time.

    A request counts as a user from the moment it asks, so that its model is not evicted between load and use. A `quick`
    model needs no files and almost no time to load. `fetching` is true while the model's files are downloaded.
    """

    spec: ModelSpec
    quick: bool = False
    users: int = 0
    nbytes: int = 0
    model: Model | None = None
    task: asyncio.Task[Model] | None = field(default=None, repr=False)
    fetching: bool = False

    @property
    def idle(self) -> bool:
        return self.users == 0 and self.model is not None

    @property
    def info(self) -> ModelInfo:
        """That of the loaded model, else one made of the request."""
        if self.model is not None:
            return self.model.info
        return ModelInfo.of(self.spec, self.spec.device or "cpu", 0, None, self.nbytes)

    @property
    def listed(self) -> ModelInfo:
        """What any client may see."""
        return self.info.anonymous if self.spec.owner else self.info

    @property
    def loading(self) -> asyncio.Task[Model]:
        """The task that loads the model."""
        assert self.task is not None, "an entry without a model is being loaded"
        return self.task

    @property
    def characters(self) -> int:
        """Length of what the request says of the model."""
        return len(self.spec.name) + len(self.spec.properties_json)


def over_limit(entries: Iterable[Entry], limit: int) -> tuple[list[Entry], bool]:
    """Chooses models to evict where there are more than `limit` of a kind, quick models and others.

    The two kinds are counted separately: a request names a quick model at no cost, but the others take long to load.
    Quick models consist of little more than their properties, so the characters of these are limited too.

    Args:
        entries: least recently used first.
        limit: models of each kind.

    Returns:
        Idle models to evict, and whether there are still too many without them.
    """
    evictable: list[Entry] = []
    over = False
    loaded = [entry for entry in entries if entry.model is not None]
    for quick in (True, False):
        group = [entry for entry in loaded if entry.quick == quick]
        count, characters = len(group), sum(entry.characters for entry in group) * quick
        for entry in group:
            if entry.idle and (count > limit or characters > _QUICK_CHARS):
                evictable.append(entry)
                count, characters = count - 1, characters - entry.characters
        over |= count > limit or characters > _QUICK_CHARS
    return evictable, over


def mark_retrieved(task: asyncio.Task[Model]) -> None:
    """Retrieves a task's exception: asyncio would log it as unhandled if all requests for it were cancelled."""
    if not task.cancelled():
        task.exception()
