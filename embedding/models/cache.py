"""The models of one encoder replica: loaded once however many ask, counted in bytes, never taken from a user.

Lives on one event loop; only the loading itself runs in threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

from embedding.errors import RequestError
from embedding.models.cache_departed import Departed, Measured
from embedding.models.cache_entry import CacheStats, Entry, seen, surplus
from embedding.models.files.failure import larger_than_budget, out_of_memory, still_downloading, too_many_loads
from embedding.models.files.load_time import load_time
from embedding.models.model import Model
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.panics import contained
from embedding.shown import shown

__all__ = ["CacheStats", "ModelCache"]

logger = logging.getLogger("ray.serve")
T = TypeVar("T")
MAX_MODELS = 100
MAX_WAITING = 96
_OTHERS_LOADS = 5


class ModelCache:
    """Loaded models, the least recently used first to go.

    Args:
        load: makes a model; blocks. Raises RequestError, or MemoryError if the device is full.
        executor: where `load`, `estimate` and `release` run.
        budget_bytes: what all weights together may take; 0 is no limit.
        estimate: tells the bytes of a model before it is loaded, so that room is made first; blocks, raises
            RequestError. None, or an answer of None: unknown, room is made when the model is there.
        release: gives memory of evicted models back to the device; blocks.
        patience_s: how long a load waits for room before models in use are closed to newcomers: one may never be idle.
        fetch: brings a model's files to the disk, before it stands in line for room and takes a thread of `executor`;
            cancelled when nobody waits for the model any more. Raises RequestError. None: `estimate` and `load` do it.
        session: entered for the time of each load, all its steps included.
        quick: whether a model needs neither files nor time. Such a one is made at once, in a thread of its kind's own;
            it counts no bytes, and makes no others go but those of its kind.
        max_models: how many are kept, quick ones and others each, and how many may be on their way.
        max_waiting: users that may wait for downloads, half of them for the same; they hold places that others need.
        device_bytes: memory of the device: what is larger alone costs no other its place; 0 is unknown.
    """

    def __init__(
        self,
        load: Callable[[ModelSpec], Model],
        executor: Executor,
        budget_bytes: int = 0,
        estimate: Callable[[ModelSpec], int | None] | None = None,
        release: Callable[[], None] | None = None,
        patience_s: float = 2.0,
        *,
        fetch: Callable[[ModelSpec], Awaitable[object]] | None = None,
        session: Callable[[], AbstractContextManager[object]] = nullcontext,
        quick: Callable[[ModelSpec], bool] = lambda spec: False,
        max_models: int = MAX_MODELS,
        max_waiting: int = MAX_WAITING,
        device_bytes: int = 0,
    ) -> None:
        self._load = load
        self._executor = executor
        self._budget = budget_bytes
        self._estimate = estimate
        self._release = release
        self._patience_s = patience_s
        self._fetch = fetch
        self._session = session
        self._is_quick = quick
        self._quick_executor = ThreadPoolExecutor(1, thread_name_prefix="quick")
        self._max_models = max_models
        self._max_waiting = max_waiting
        self._device_bytes = device_bytes
        self._too_many = False
        self._entries: OrderedDict[ModelSpec, Entry] = OrderedDict()
        self._ejected: set[Entry] = set()
        self._measured = Measured()
        self._line: deque[Entry] = deque()
        self._changed = asyncio.Event()
        self._departed = Departed()
        self._unreleased = False
        self._stats = CacheStats(budget_bytes=budget_bytes)

    @asynccontextmanager
    async def use(self, spec: ModelSpec) -> AsyncIterator[Model]:
        """The model of `spec`, loaded if need be, and kept for as long as the context lasts.

        Raises:
            RequestError: REFUSED, if it cannot be loaded or is larger than the whole budget; OVERLOADED, if the
                device is full of models in use, or too many are on their way.
        """
        entry = await self._loaded_entry(spec)
        try:
            assert entry.model is not None
            yield entry.model
        finally:
            self._stop_using(entry)

    async def _loaded_entry(self, spec: ModelSpec) -> Entry:
        """The entry of `spec`, counted as in use. A load that failed with somebody else's credentials says nothing of
        one with these."""
        for attempt in range(_OTHERS_LOADS + 1):
            entry = self._entries.get(spec) or self._begin(spec)
            self._check_waiting(entry)
            self._entries.move_to_end(spec)
            entry.users += 1
            try:
                if entry.model is None:
                    # Shielded: the first caller's hanging up must not cost the others their model.
                    await asyncio.shield(entry.loading)
                return entry
            except BaseException as error:
                self._stop_using(entry)
                others = entry.spec.auth_json != spec.auth_json and attempt < _OTHERS_LOADS
                if not (others and isinstance(error, RequestError)):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _begin(self, spec: ModelSpec) -> Entry:
        loading = sum(entry.model is None for entry in self._entries.values())
        if loading >= self._max_models:
            raise too_many_loads(spec.name, loading)
        entry = self._entries[spec] = Entry(spec, self._is_quick(spec))
        entry.task = asyncio.create_task(self._fill(entry))
        entry.task.add_done_callback(seen)
        return entry

    def _check_waiting(self, entry: Entry) -> None:
        if entry.fetching:
            waiting = sum(other.users for other in self._entries.values() if other.fetching)
            if waiting >= self._max_waiting or 2 * entry.users >= self._max_waiting:
                raise still_downloading(entry.spec.name, waiting)

    def _stop_using(self, entry: Entry) -> None:
        entry.users -= 1
        self._leave(entry)
        if self._too_many:
            self._trim()

    def infos(self) -> list[ModelInfo]:
        """What is loaded, least recently used first, as far as anybody may know."""
        return [entry.listed for entry in self._entries.values() if entry.model is not None]

    def eject(self, chosen: Callable[[ModelInfo], bool]) -> list[ModelInfo]:
        """Forgets the chosen models. One in use, or one that is being loaded, goes when its last user is done; the next
        request loads it anew. Of one that is being loaded, dimensions and image are not known yet: 0 and None.
        """
        gone = [entry for entry in self._entries.values() if chosen(entry.info)]
        infos = [entry.listed for entry in gone]
        for entry in gone:
            self._remove(entry)
        self._stats.ejections += len(gone)
        return infos

    def stats(self) -> CacheStats:
        """Counters and sizes."""
        return replace(self._stats, bytes=self._used(), waiting=len(self._line))

    async def _fill(self, entry: Entry) -> Model:
        """Makes the entry's model. A failed entry leaves nothing behind, and the next request tries again."""
        with load_time() as clock, self._session():
            model = await self._made(entry)
        entry.model, entry.task = model, None
        self._trim()
        self._stats.loads += 1
        self._stats.load_seconds += clock.elapsed_s
        self._leave(entry)
        return model

    async def _made(self, entry: Entry) -> Model:
        model: Model | None = None
        try:
            if entry.quick:
                return await self._in_thread(lambda: self._load(entry.spec), self._quick_executor)
            await self._fetched(entry)
            await self._make_room(entry, await self._expected(entry.spec))
            model = await self._loaded(entry)
            nbytes = model.info.nbytes
            self._measured.remember(entry.spec, nbytes)
            if nbytes > entry.nbytes:
                # More than expected. What it holds would keep the line from moving, so it stands in line anew.
                entry.nbytes = 0
            await self._make_room(entry, nbytes)
        except BaseException as error:
            model = None  # or the traceback keeps it
            self._unreleased |= not entry.quick
            entry.nbytes, entry.task = 0, None
            self._remove(entry)
            self._stats.failed_loads += not isinstance(error, asyncio.CancelledError)
            raise
        return model

    async def _fetched(self, entry: Entry) -> None:
        entry.fetching = self._fetch is not None
        try:
            if self._fetch is not None:
                await self._fetch(entry.spec)
        finally:
            entry.fetching = False

    async def _expected(self, spec: ModelSpec) -> int:
        """Bytes to set aside: what it took the last time, else the estimate, else nothing."""
        measured = self._measured.get(spec)
        if measured is not None:
            return measured
        estimate = self._estimate
        return 0 if estimate is None else await self._in_thread(lambda: estimate(spec) or 0)

    async def _loaded(self, entry: Entry) -> Model:
        """The model; if the device is full, a second try without any idle model."""
        spec = entry.spec
        try:
            return await self._attempt(spec)
        except MemoryError:
            logger.warning(f"out of memory while loading {shown(spec.name)}: ejecting every model that is not in use")
            self._stats.out_of_memory += 1
        # Outside of `except`: the frames of the failed load, and the tensors in them, are gone by now.
        self._evict_all_idle()
        try:
            return await self._attempt(spec)
        except MemoryError as error:
            reason = str(error)
        raise out_of_memory(spec.name, len(self._entries) + len(self._ejected) > 1, reason)

    async def _attempt(self, spec: ModelSpec) -> Model:
        if self._unreleased:
            self._unreleased = False
            if not await self._departed.wait():
                await self._in_thread(gc.collect)  # a cycle holds one
            if self._release is not None:
                await self._in_thread(self._release)
        return await self._in_thread(lambda: self._load(spec))

    async def _make_room(self, entry: Entry, nbytes: int) -> None:
        """Sets `nbytes` aside for an entry, first come, first served.

        Raises:
            RequestError: REFUSED, if that is more than the whole budget.
        """
        most = self._budget or self._device_bytes
        if most and nbytes > most:
            raise larger_than_budget(entry.spec.name, nbytes, most)
        if nbytes > entry.nbytes and self._budget:
            self._line.append(entry)
            try:
                await self._wait_for_room(entry, nbytes)
                entry.nbytes = nbytes
            finally:
                self._line.remove(entry)
        entry.nbytes = nbytes
        self._notify()

    async def _wait_for_room(self, entry: Entry, nbytes: int) -> None:
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
        idle = [entry for entry in self._entries.values() if entry.idle and entry.nbytes]
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
        for entry in [entry for entry in self._entries.values() if entry.model is not None and entry.nbytes]:
            if self._used() - leaving + nbytes <= self._budget:
                break
            leaving += entry.nbytes
            self._evict(entry)

    def _trim(self) -> None:
        """Evicts what is too many."""
        gone, self._too_many = surplus(self._entries.values(), self._max_models)
        for entry in gone:
            self._evict(entry)

    def _evict_all_idle(self) -> None:
        for entry in [entry for entry in self._entries.values() if entry.idle]:
            self._evict(entry)
        self._unreleased = True

    def _evict(self, entry: Entry) -> None:
        self._remove(entry)
        self._stats.evictions += 1

    def _remove(self, entry: Entry) -> None:
        """Takes an entry out of reach; its bytes stay taken until its last user is gone."""
        if self._entries.get(entry.spec) is entry:
            del self._entries[entry.spec]
            self._ejected.add(entry)
        self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        """Called whenever an entry may have become idle, or free to go."""
        if entry.users == 0 and (entry.fetching or entry in self._line):
            # Everybody has hung up before the load began.
            if self._entries.get(entry.spec) is entry:
                del self._entries[entry.spec]
            entry.loading.cancel()
        # A load that has begun ends, and takes memory for as long, whether anybody waits for it or not.
        if entry in self._ejected and entry.task is None and (entry.users == 0 or entry.nbytes == 0):
            self._ejected.discard(entry)
            if entry.model is not None and not entry.quick:
                self._departed.add(entry.model)
                self._unreleased = True
        self._notify()

    def _notify(self) -> None:
        """Wakes everybody who waits for room."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _in_thread(self, call: Callable[[], T], executor: Executor | None = None) -> T:
        # With the context of the load, so that its steps share one clock.
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(
            executor or self._executor, lambda: run(contained, call)
        )

    def _used(self) -> int:
        return sum(entry.nbytes for entry in (*self._entries.values(), *self._ejected))
