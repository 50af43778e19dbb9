"""One model of a cache, and what a cache says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from embedding.models.model import Model
from embedding.models.spec import ModelInfo, ModelSpec

_QUICK_CHARS = 4_000_000


@dataclass(slots=True)
class CacheStats:
    """Counters since the start, and sizes of now: for metrics.

    Args:
        loads: models loaded.
        failed_loads: loads that ended in an error.
        load_seconds: what the loads took, all together: from the first step to the model's being ready, so with its
            download, its wait for room and its warm-up.
        evictions: models that made room for others, or were too many.
        ejections: models that somebody ejected.
        out_of_memory: loads for which everything idle had to go, since the device was full before the budget was.
        bytes: weights of all models, with what is set aside for those that are loading.
        budget_bytes: what `bytes` may be; 0 is no limit.
        waiting: loads that wait for room.
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
    """One model from the first request for it until its last user is gone; `nbytes` counts all that time.

    Users are counted from the moment they ask, so that nobody's model goes between its load and its use. A `quick` one
    needs no files, nor time worth mentioning; while one is `fetching`, its files are on their way.
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
        """The model's own, else what the request says of it."""
        if self.model is not None:
            return self.model.info
        return ModelInfo.of(self.spec, self.spec.device or "cpu", 0, None, self.nbytes)

    @property
    def listed(self) -> ModelInfo:
        """What anybody may know."""
        return self.info.anonymous if self.spec.owner else self.info

    @property
    def loading(self) -> asyncio.Task[Model]:
        """The load of a model that is not there yet."""
        assert self.task is not None, "an entry without a model is being loaded"
        return self.task

    @property
    def characters(self) -> int:
        """Of what the request says of it."""
        return len(self.spec.name) + len(self.spec.properties_json)


def surplus(entries: Iterable[Entry], most: int) -> tuple[list[Entry], bool]:
    """What is to be evicted where there are more than `most` loaded models of a kind.

    Quick models and others do not drive each other out: a quick one costs nothing to name, the others much to load.
    Quick ones are little more than their descriptions, whose characters have a limit too.

    Args:
        entries: least recently used first.
        most: of each kind.

    Returns:
        Those that nobody uses, and whether there are still too many without them.
    """
    gone: list[Entry] = []
    still = False
    loaded = [entry for entry in entries if entry.model is not None]
    for quick in (True, False):
        kind = [entry for entry in loaded if entry.quick == quick]
        count, characters = len(kind), sum(entry.characters for entry in kind) * quick
        for entry in kind:
            if entry.idle and (count > most or characters > _QUICK_CHARS):
                gone.append(entry)
                count, characters = count - 1, characters - entry.characters
        still |= count > most or characters > _QUICK_CHARS
    return gone, still


def seen(task: asyncio.Task[Model]) -> None:
    """Marks a failure as seen, in case that everybody who asked has hung up."""
    if not task.cancelled():
        task.exception()
