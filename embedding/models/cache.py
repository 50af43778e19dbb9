"""The models of one encoder replica: loaded once however many ask, counted in bytes, never taken from a user.

Lives on one event loop; only the loading itself runs in threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from embedding.errors import Fault, RequestError
from embedding.models.load_time import load_time
from embedding.models.model import Model
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.panic import contained

logger = logging.getLogger("ray.serve")
T = TypeVar("T")
_MEASURED_KEPT = 10_000
_GONE_TRIES, _GONE_PAUSE_S = 50, 0.01


@dataclass(slots=True)
class CacheStats:
    """Counters since the start, and sizes of now: for metrics.

    Args:
        loads: models loaded.
        failed_loads: loads that ended in an error.
        load_seconds: what the loads took, all together: from the first step to the model's being ready, so with its
            download, its wait for room and its warm-up.
        evictions: models that made room for others.
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
class _Entry:
    """One model from the first request for it until its last user is gone; `nbytes` counts all that time.

    Users are counted from the moment they ask, so that nobody's model goes between its load and its use.
    """

    spec: ModelSpec
    users: int = 0
    nbytes: int = 0
    model: Model | None = None
    task: asyncio.Task[Model] | None = field(default=None, repr=False)

    @property
    def idle(self) -> bool:
        return self.users == 0 and self.model is not None

    @property
    def info(self) -> ModelInfo:
        """The model's own, else what the request says of it."""
        if self.model is not None:
            return self.model.info
        return ModelInfo.of(self.spec, self.spec.device or "cpu", 0, None, self.nbytes)


class ModelCache:
    """Loaded models, the least recently used first to go.

    Args:
        load: makes a model; blocks. Raises RequestError, or MemoryError if the device is full.
        executor: where `load`, `estimate` and `release` run.
        budget_bytes: what all weights together may take; 0 is no limit.
        estimate: tells the bytes of a model before it is loaded, so that room is made first; blocks, may download,
            raises RequestError. None, or an answer of None: unknown, room is made when the model is there.
        release: gives memory of evicted models back to the device; blocks.
        patience_s: how long a load waits for room before models in use are closed to newcomers, so that a model that
            is never idle cannot keep others out for good.
    """

    def __init__(
        self,
        load: Callable[[ModelSpec], Model],
        executor: Executor,
        budget_bytes: int = 0,
        estimate: Callable[[ModelSpec], int | None] | None = None,
        release: Callable[[], None] | None = None,
        patience_s: float = 2.0,
    ) -> None:
        self._load = load
        self._executor = executor
        self._budget = budget_bytes
        self._estimate = estimate
        self._release = release
        self._patience_s = patience_s
        self._entries: OrderedDict[ModelSpec, _Entry] = OrderedDict()
        self._ejected: set[_Entry] = set()
        self._measured: dict[ModelSpec, int] = {}
        self._line: deque[_Entry] = deque()
        self._changed = asyncio.Event()
        self._gone: list[weakref.ref[Model]] = []
        self._unreleased = False
        self._stats = CacheStats(budget_bytes=budget_bytes)

    @asynccontextmanager
    async def use(self, spec: ModelSpec) -> AsyncIterator[Model]:
        """The model of `spec`, loaded if need be, and kept for as long as the context lasts.

        Raises:
            RequestError: REFUSED, if it cannot be loaded or is larger than the whole budget; OVERLOADED, if the
                device is full of models in use.
        """
        entry = self._entries.get(spec)
        if entry is None:
            entry = self._entries[spec] = _Entry(spec)
            entry.task = asyncio.create_task(self._fill(entry))
            entry.task.add_done_callback(_seen)
        self._entries.move_to_end(spec)
        entry.users += 1
        try:
            if entry.model is None:
                # Shielded: the first caller's hanging up must not cost the others their model.
                await asyncio.shield(_started(entry))
            assert entry.model is not None
            yield entry.model
        finally:
            entry.users -= 1
            self._leave(entry)

    def infos(self) -> list[ModelInfo]:
        """What is loaded, least recently used first."""
        return [entry.model.info for entry in self._entries.values() if entry.model is not None]

    def eject(self, chosen: Callable[[ModelInfo], bool]) -> list[ModelInfo]:
        """Forgets the chosen models. One in use, or one that is being loaded, goes when its last user is done; the next
        request loads it anew. Of one that is being loaded, dimensions and image are not known yet: 0 and None.
        """
        gone = [entry for entry in self._entries.values() if chosen(entry.info)]
        infos = [entry.info for entry in gone]
        for entry in gone:
            self._remove(entry)
        self._stats.ejections += len(gone)
        return infos

    def stats(self) -> CacheStats:
        """Counters and sizes."""
        return replace(self._stats, bytes=self._used(), waiting=len(self._line))

    async def _fill(self, entry: _Entry) -> Model:
        """Makes the entry's model. A failed entry leaves nothing behind, and the next request tries again."""
        with load_time() as clock:
            model = await self._made(entry)
        entry.model, entry.task = model, None
        self._stats.loads += 1
        self._stats.load_seconds += clock.elapsed_s
        self._leave(entry)
        return model

    async def _made(self, entry: _Entry) -> Model:
        model: Model | None = None
        try:
            await self._make_room(entry, await self._expected(entry.spec))
            model = await self._loaded(entry)
            nbytes = self._measured[entry.spec] = model.info.nbytes
            if nbytes > entry.nbytes:
                # More than expected. What it holds would keep the line from moving, so it stands in line anew.
                entry.nbytes = 0
            await self._make_room(entry, nbytes)
        except BaseException as error:
            model = None  # or the traceback keeps it
            self._unreleased = True
            entry.nbytes, entry.task = 0, None
            self._remove(entry)
            self._stats.failed_loads += not isinstance(error, asyncio.CancelledError)
            raise
        return model

    async def _expected(self, spec: ModelSpec) -> int:
        """Bytes to set aside: what it took the last time, else the estimate, else nothing."""
        if len(self._measured) > _MEASURED_KEPT:
            self._measured.clear()
        if spec in self._measured:
            return self._measured[spec]
        estimate = self._estimate
        if estimate is None:
            return 0
        return await self._in_thread(lambda: estimate(spec) or 0)

    async def _loaded(self, entry: _Entry) -> Model:
        """The model; if the device is full, a second try without any idle model."""
        spec = entry.spec
        try:
            return await self._attempt(spec)
        except MemoryError:
            logger.warning(f"out of memory while loading {spec.name}: ejecting every model that is not in use")
            self._stats.out_of_memory += 1
        # Outside of `except`: the frames of the failed load, and the tensors in them, are gone by now.
        self._evict_all_idle()
        try:
            return await self._attempt(spec)
        except MemoryError as error:
            reason = str(error)
        others = any(other is not entry for other in (*self._entries.values(), *self._ejected))
        raise RequestError(
            Fault.OVERLOADED if others else Fault.REFUSED,
            f"Unable to load model '{spec.name}': the device's memory is full, "
            f"{'of other models in use' if others else 'even without other models'} ({reason})",
        )

    async def _attempt(self, spec: ModelSpec) -> Model:
        if self._unreleased:
            self._unreleased = False
            await self._until_gone()
            if self._release is not None:
                await self._in_thread(self._release)
        return await self._in_thread(lambda: self._load(spec))

    async def _until_gone(self) -> None:
        """Lets a forward pass whose caller has hung up run to its end: only then is its model's memory free."""
        for _ in range(_GONE_TRIES):
            self._gone = [reference for reference in self._gone if reference() is not None]
            if not self._gone:
                return
            await asyncio.sleep(_GONE_PAUSE_S)
        await self._in_thread(gc.collect)  # a cycle holds it

    async def _make_room(self, entry: _Entry, nbytes: int) -> None:
        """Sets `nbytes` aside for an entry, first come, first served.

        Raises:
            RequestError: REFUSED, if that is more than the whole budget.
        """
        if self._budget and nbytes > self._budget:
            raise RequestError(
                Fault.REFUSED,
                f"Unable to load model '{entry.spec.name}': its weights take {nbytes} bytes, "
                f"more than the {self._budget} that this server keeps for all models",
            )
        if nbytes > entry.nbytes and self._budget:
            self._line.append(entry)
            try:
                await self._wait_for_room(entry, nbytes)
                entry.nbytes = nbytes
            finally:
                self._line.remove(entry)
        entry.nbytes = nbytes
        self._notify()

    async def _wait_for_room(self, entry: _Entry, nbytes: int) -> None:
        impatient_at = time.monotonic() + self._patience_s
        while self._line[0] is not entry or not self._evict_for(nbytes):
            timeout = max(0.0, impatient_at - time.monotonic()) if self._line[0] is entry else None
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                self._close_for(nbytes)
                impatient_at = time.monotonic() + self._patience_s

    def _evict_for(self, nbytes: int) -> bool:
        """Evicts what nobody uses until `nbytes` more fit; False if models in use stand in the way."""
        idle = [entry for entry in self._entries.values() if entry.idle]
        if self._used() + nbytes - sum(entry.nbytes for entry in idle) > self._budget:
            return False  # it would cost others their models, and still not be enough
        for entry in idle:
            if self._used() + nbytes <= self._budget:
                break
            self._evict(entry)
        return True

    def _close_for(self, nbytes: int) -> None:
        """Takes loaded models from the next users, least recently used first, until `nbytes` will fit once the present
        ones are done. Whoever asks for such a model from now on stands in line behind."""
        leaving = sum(entry.nbytes for entry in self._ejected)
        for entry in [entry for entry in self._entries.values() if entry.model is not None]:
            if self._used() - leaving + nbytes <= self._budget:
                break
            leaving += entry.nbytes
            self._evict(entry)

    def _evict_all_idle(self) -> None:
        for entry in [entry for entry in self._entries.values() if entry.idle]:
            self._evict(entry)
        self._unreleased = True

    def _evict(self, entry: _Entry) -> None:
        self._remove(entry)
        self._stats.evictions += 1

    def _remove(self, entry: _Entry) -> None:
        """Takes an entry out of reach; its bytes stay taken until its last user is gone."""
        if self._entries.get(entry.spec) is entry:
            del self._entries[entry.spec]
            self._ejected.add(entry)
        self._leave(entry)

    def _leave(self, entry: _Entry) -> None:
        """Called whenever an entry may have become idle, or free to go."""
        if entry.users == 0 and entry in self._line:
            # Everybody has hung up before the load began.
            if self._entries.get(entry.spec) is entry:
                del self._entries[entry.spec]
            _started(entry).cancel()
        # A load that has begun ends, and takes memory for as long, whether anybody waits for it or not.
        if entry in self._ejected and entry.task is None and (entry.users == 0 or entry.nbytes == 0):
            self._ejected.discard(entry)
            if entry.model is not None:
                self._gone.append(weakref.ref(entry.model))
                self._unreleased = True
        self._notify()

    def _notify(self) -> None:
        """Wakes everybody who waits for room."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        # With the context of the load, so that its steps share one clock.
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: run(contained, call))

    def _used(self) -> int:
        return sum(entry.nbytes for entry in (*self._entries.values(), *self._ejected))


def _started(entry: _Entry) -> asyncio.Task[Model]:
    assert entry.task is not None, "an entry without a model is being loaded"
    return entry.task


def _seen(task: asyncio.Task[Model]) -> None:
    """Marks a failure as seen, in case that everybody who asked has hung up."""
    if not task.cancelled():
        task.exception()
