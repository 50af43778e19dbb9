"""The loaded models of one encoder replica: each loaded once for all requests, kept while in use, within a byte budget.

Runs on one event loop; only the loading itself runs in threads.
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
from embedding.meter import Meter
from embedding.models.cache_entry import CacheStats, Entry, mark_retrieved, over_limit
from embedding.models.cache_history import DroppedModels, MeasuredSizes
from embedding.models.cache_metrics import CacheMetrics
from embedding.models.files import failure
from embedding.models.files.load_time import load_time, waiting
from embedding.models.model import Model
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.panics import contained
from embedding.shown import shown, without_credentials

logger = logging.getLogger("ray.serve")
T = TypeVar("T")
MAX_MODELS = 100
MAX_WAITING = 96
_MAX_RETRIES = 5


class ModelCache:
    """Loaded models; the least recently used is evicted first.

    Args:
        load: loads a model; blocks. Raises RequestError, or MemoryError if the device is full.
        executor: runs `load`, `estimate` and `release`.
        budget_bytes: limit for the weights of all models together; 0 is no limit.
        estimate: predicts the bytes of a model, so that memory is freed before it is loaded; blocks, raises
            RequestError. If it is None or returns None, memory is freed when the model is loaded.
        release: returns memory of evicted models to the device; blocks.
        drain_after_s: seconds that a load waits for memory before it drains models in use: they get no new users, since
            a busy model may never become idle.
        fetch: downloads a model's files, before the load queues for memory and takes a thread of `executor`; cancelled
            when no request waits for the model any more. Raises RequestError. None: `estimate` and `load` download.
        session: entered for the time of each load, with all its steps.
        quick: whether a model needs neither files nor time to load. Such models are loaded at once, in a separate
            thread; they count no bytes, and only evict each other.
        max_models: how many are kept, counting quick models and others separately, and how many may be loading.
        max_waiting: requests that may wait for downloads, at most half of them for one model.
        device_bytes: memory of the device: a model larger than that is refused and evicts no others; 0 is unknown.
    """

    def __init__(
        self,
        load: Callable[[ModelSpec], Model],
        executor: Executor,
        budget_bytes: int = 0,
        estimate: Callable[[ModelSpec], int | None] | None = None,
        release: Callable[[], None] | None = None,
        drain_after_s: float = 2.0,
        *,
        fetch: Callable[[ModelSpec], Awaitable[object]] | None = None,
        session: Callable[[], AbstractContextManager[object]] = nullcontext,
        quick: Callable[[ModelSpec], bool] = lambda spec: False,
        max_models: int = MAX_MODELS,
        max_waiting: int = MAX_WAITING,
        device_bytes: int = 0,
        meter: Meter | None = None,
    ) -> None:
        self._load = load
        self._executor = executor
        self._budget = budget_bytes
        self._estimate = estimate
        self._release = release
        self._drain_after_s = drain_after_s
        self._fetch = fetch
        self._session = session
        self._is_quick = quick
        self._quick_executor = ThreadPoolExecutor(1, thread_name_prefix="quick")
        self._max_models = max_models
        self._max_waiting = max_waiting
        self._device_bytes = device_bytes
        self._over_limit = False
        self._entries: OrderedDict[ModelSpec, Entry] = OrderedDict()
        self._retiring: set[Entry] = set()
        self._measured = MeasuredSizes()
        self._queue: deque[Entry] = deque()
        self._changed = asyncio.Event()
        self._dropped = DroppedModels()
        self._release_needed = False
        self._stats = CacheStats(budget_bytes=budget_bytes)
        self._metrics = CacheMetrics(meter or Meter(), self._entries.values)

    @asynccontextmanager
    async def use(self, spec: ModelSpec) -> AsyncIterator[Model]:
        """The model of `spec`, loaded if necessary, and kept for as long as the context lasts.

        Raises:
            RequestError: REFUSED, if it cannot be loaded or is larger than the whole budget; OVERLOADED, if the
                device is full of models in use, or too many are being loaded.
        """
        entry = await self._acquire(spec)
        try:
            assert entry.model is not None
            yield entry.model
        finally:
            self._stop_using(entry)

    async def _acquire(self, spec: ModelSpec) -> Entry:
        """The loaded entry of `spec`, with one more user. Tries again if a load with another request's credentials
        fails, since those may be the cause."""
        for attempt in range(_MAX_RETRIES + 1):
            entry = self._entries.get(spec) or self._start_loading(spec)
            self._check_waiting(entry)
            self._entries.move_to_end(spec)
            entry.users += 1
            try:
                if entry.model is None:
                    # Shielded: the other requests for the model still need the load if this one is cancelled.
                    await asyncio.shield(entry.loading)
                return entry
            except BaseException as error:
                self._stop_using(entry)
                others = entry.spec.auth_json != spec.auth_json and attempt < _MAX_RETRIES
                if not (others and isinstance(error, RequestError)):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _start_loading(self, spec: ModelSpec) -> Entry:
        loading = sum(entry.model is None for entry in self._entries.values())
        if loading >= self._max_models:
            raise failure.too_many_loads(spec.name, loading)
        entry = self._entries[spec] = Entry(spec, self._is_quick(spec))
        entry.task = asyncio.create_task(self._load_entry(entry))
        entry.task.add_done_callback(mark_retrieved)
        return entry

    def _check_waiting(self, entry: Entry) -> None:
        if entry.fetching:
            waiting = sum(other.users for other in self._entries.values() if other.fetching)
            if waiting >= self._max_waiting or 2 * entry.users >= self._max_waiting:
                raise failure.still_downloading(entry.spec.name, waiting)

    def _stop_using(self, entry: Entry) -> None:
        entry.users -= 1
        self._release_if_unused(entry)
        if self._over_limit:
            self._trim()

    def infos(self) -> list[ModelInfo]:
        """The loaded models, least recently used first, with what any client may see of them."""
        return [entry.listed for entry in self._entries.values() if entry.model is not None]

    def eject(self, chosen: Callable[[ModelInfo], bool]) -> list[ModelInfo]:
        """Removes the chosen models. One in use or being loaded is freed after its last user; the next request loads it
        again. For one that is being loaded, dimensions and image are still unknown: 0 and None.
        """
        removed = [entry for entry in self._entries.values() if chosen(entry.info)]
        infos = [entry.listed for entry in removed]
        for entry in removed:
            self._remove(entry)
        self._stats.ejections += len(removed)
        return infos

    def stats(self) -> CacheStats:
        """Counters and sizes."""
        return replace(self._stats, bytes=self._used_bytes(), waiting=len(self._queue))

    async def _load_entry(self, entry: Entry) -> Model:
        """Loads the entry's model. An entry that fails is removed, so that the next request tries again."""
        with load_time() as clock, self._session():
            model = await self._make_model(entry)
        entry.model, entry.task = model, None
        self._trim()
        self._stats.loads += 1
        self._stats.load_seconds += clock.elapsed_s
        self._metrics.loaded(entry.spec.name, clock)
        self._release_if_unused(entry)
        return model

    async def _make_model(self, entry: Entry) -> Model:
        model: Model | None = None
        try:
            if entry.quick:
                return await self._in_thread(lambda: self._load(entry.spec), self._quick_executor)
            await self._fetch_files(entry)
            await self._reserve(entry, await self._expected_bytes(entry.spec))
            model = await self._load_or_retry(entry)
            nbytes = model.info.nbytes
            self._measured.remember(entry.spec, nbytes)
            if nbytes > entry.nbytes:
                # More than expected. It gives up its reservation, which could block the queue, and queues again.
                entry.nbytes = 0
            await self._reserve(entry, nbytes)
        except BaseException as error:
            model = None  # the traceback would keep it alive
            self._release_needed |= not entry.quick
            entry.nbytes, entry.task = 0, None
            self._remove(entry)
            if not isinstance(error, asyncio.CancelledError):
                self._stats.failed_loads += 1
                self._metrics.failed(error)
                logger.warning(failure.log_line(error, entry.spec.name))
            raise
        return model

    async def _fetch_files(self, entry: Entry) -> None:
        entry.fetching = self._fetch is not None
        try:
            if self._fetch is not None:
                await self._fetch(entry.spec)
        finally:
            entry.fetching = False

    async def _expected_bytes(self, spec: ModelSpec) -> int:
        """Bytes to reserve: what the model took the last time, else the estimate, else 0."""
        measured = self._measured.get(spec)
        if measured is not None:
            return measured
        estimate = self._estimate
        return 0 if estimate is None else await self._in_thread(lambda: estimate(spec) or 0)

    async def _load_or_retry(self, entry: Entry) -> Model:
        """Loads the model; if the device is full, evicts every idle model and tries once more."""
        spec = entry.spec
        try:
            return await self._load_once(spec)
        except MemoryError:
            name = shown(without_credentials(spec.name))
            logger.warning(f"out of memory while loading {name}: ejecting every model that is not in use")
            self._stats.out_of_memory += 1
        # Outside of `except`: here the traceback no longer keeps the tensors of the failed load alive.
        self._evict_all_idle()
        try:
            return await self._load_once(spec)
        except MemoryError as error:
            reason = str(error)
        raise failure.out_of_memory(spec.name, len(self._entries) + len(self._retiring) > 1, reason)

    async def _load_once(self, spec: ModelSpec) -> Model:
        if self._release_needed:
            self._release_needed = False
            if not await self._dropped.wait():
                await self._in_thread(gc.collect)  # a reference cycle keeps one alive
            if self._release is not None:
                await self._in_thread(self._release)
        return await self._in_thread(lambda: self._load(spec))

    async def _reserve(self, entry: Entry, nbytes: int) -> None:
        """Reserves `nbytes` for an entry. Waiting entries are served in order of arrival.

        Raises:
            RequestError: REFUSED, if that is more than the whole budget.
        """
        limit = self._budget or self._device_bytes
        if limit and nbytes > limit:
            raise failure.larger_than_budget(entry.spec.name, nbytes, limit)
        if nbytes > entry.nbytes and self._budget:
            self._queue.append(entry)
            try:
                with waiting():
                    await self._wait_for_memory(entry, nbytes)
            finally:
                self._queue.remove(entry)
        entry.nbytes = nbytes
        self._notify()

    async def _wait_for_memory(self, entry: Entry, nbytes: int) -> None:
        drain_at = time.monotonic() + self._drain_after_s
        while self._queue[0] is not entry or not self._evict_for(nbytes):
            timeout = max(0.0, drain_at - time.monotonic()) if self._queue[0] is entry else None
            try:
                # Not wait_for, which on Python 3.11 loses a cancellation that comes together with the event.
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                self._drain_for(nbytes)
                drain_at = time.monotonic() + self._drain_after_s

    def _evict_for(self, nbytes: int) -> bool:
        """Evicts idle models until `nbytes` more fit. False, with none evicted, if models in use take too much."""
        idle = [entry for entry in self._entries.values() if entry.idle and entry.nbytes]
        if self._used_bytes() + nbytes - sum(entry.nbytes for entry in idle) > self._budget:
            return False  # evicting all of them would still not be enough
        for entry in idle:
            if self._used_bytes() + nbytes <= self._budget:
                break
            self._evict(entry)
        return True

    def _drain_for(self, nbytes: int) -> None:
        """Removes loaded models, least recently used first, until `nbytes` will fit once their present users are done.
        A new request for such a model loads it again, and queues behind this load."""
        draining = sum(entry.nbytes for entry in self._retiring)
        for entry in [entry for entry in self._entries.values() if entry.model is not None and entry.nbytes]:
            if self._used_bytes() - draining + nbytes <= self._budget:
                break
            draining += entry.nbytes
            self._evict(entry)

    def _trim(self) -> None:
        """Evicts idle models beyond `max_models`."""
        removed, self._over_limit = over_limit(self._entries.values(), self._max_models)
        for entry in removed:
            self._evict(entry)

    def _evict_all_idle(self) -> None:
        for entry in [entry for entry in self._entries.values() if entry.idle]:
            self._evict(entry)
        self._release_needed = True

    def _evict(self, entry: Entry) -> None:
        self._remove(entry)
        self._stats.evictions += 1
        self._metrics.evicted(entry.spec.name)

    def _remove(self, entry: Entry) -> None:
        """Hides an entry from new requests. Its bytes stay counted until its last user is done."""
        if self._entries.get(entry.spec) is entry:
            del self._entries[entry.spec]
            self._retiring.add(entry)
        self._release_if_unused(entry)

    def _release_if_unused(self, entry: Entry) -> None:
        """Frees a removed entry without users, and cancels a load without users. Called whenever that may apply."""
        if entry.users == 0 and (entry.fetching or entry in self._queue):
            # All requests for it were cancelled before a thread began to load it.
            if self._entries.get(entry.spec) is entry:
                del self._entries[entry.spec]
            entry.loading.cancel()
        # A thread that loads cannot be cancelled: the entry takes memory until it ends, even without users.
        if entry in self._retiring and entry.task is None and (entry.users == 0 or entry.nbytes == 0):
            self._retiring.discard(entry)
            if entry.model is not None and not entry.quick:
                self._dropped.add(entry.model)
                self._release_needed = True
        self._notify()

    def _notify(self) -> None:
        """Wakes all loads that wait for memory."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _in_thread(self, call: Callable[[], T], executor: Executor | None = None) -> T:
        # In the context of the load, so that all its steps share one clock and one session.
        run, loop = contextvars.copy_context().run, asyncio.get_running_loop()
        return await loop.run_in_executor(executor or self._executor, lambda: run(contained, call))

    def _used_bytes(self) -> int:
        return sum(entry.nbytes for entry in (*self._entries.values(), *self._retiring))
