"""Memory of the model cache: sizes that are known beforehand, the queue, a device that is full."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedding.errors import Fault, RequestError
from embedding.models.cache import ModelCache
from embedding.models.model import Model
from embedding.models.spec import ModelSpec
from tests.support.cache import WAIT_S, Loader, foreseen, model_of, names, run, settle, spec, touch
from tests.support.waiting import until_async


def test_models_are_evicted_before_a_load() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "a")
        await touch(cache, "b")
        gate = loader.gate("c")
        newcomer = asyncio.create_task(touch(cache, "c"))
        await loader.loading("c")
        assert names(cache) == ["b"]
        assert cache.stats().bytes == 20
        gate.set()
        await newcomer
        assert cache.stats().bytes == 20

    run(test, budget=20, estimate=foreseen)


def test_no_load_begins_while_models_in_use_fill_the_budget() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("a")), cache.use(spec("b")):
            waiting = [asyncio.create_task(touch(cache, name)) for name in ("c", "d")]
            await until_async(lambda: cache.stats().waiting == 2)
            assert loader.loads == ["a", "b"]
            assert cache.stats().bytes == 20
        await asyncio.gather(*waiting)
        assert sorted(loader.loads) == ["a", "b", "c", "d"]
        assert cache.stats().evictions == 2

    run(test, budget=20, estimate=foreseen)


def test_what_can_never_fit_is_not_even_loaded() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "a")
        with pytest.raises(RequestError, match=r"Unable to load model 'big:31'.*31 bytes.*30"):
            await touch(cache, "big:31")
        assert loader.loads == ["a"]
        assert names(cache) == ["a"]

    run(test, budget=30, estimate=foreseen)


@pytest.mark.parametrize("name", ["wrong:20:5", "wrong:20:30"])
def test_an_estimate_may_be_wrong(name: str) -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "a")
        await touch(cache, "b")
        await touch(cache, name)
        assert cache.stats().bytes <= 30
        assert name in names(cache)
        cache.eject(lambda info: True)
        assert cache.stats().bytes == 0

    class Sized(Loader):
        def __call__(self, spec: ModelSpec) -> Model:
            model = super().__call__(ModelSpec(spec.name.rpartition(":")[0] if spec.name == name else spec.name, "{}"))
            return model_of(dataclasses.replace(model.info, name=spec.name))

    async def main() -> None:
        with ThreadPoolExecutor(4) as executor:
            loader = Sized()
            await asyncio.wait_for(test(ModelCache(loader, executor, 30, foreseen), loader), WAIT_S)

    asyncio.run(main())


def test_an_underestimated_model_does_not_cause_a_deadlock() -> None:
    """The one in front waits for all of the budget, of which the one behind would hold a part for ever."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("wrong:20")
        async with cache.use(spec("a")):
            behind = asyncio.create_task(touch(cache, "wrong:20"))
            await loader.loading("wrong:20")
            in_front = asyncio.create_task(touch(cache, "big:30"))
            await until_async(lambda: cache.stats().waiting == 1)
            gate.set()
            await until_async(lambda: cache.stats().waiting == 2)
            assert not in_front.done()
            assert not behind.done()
        await asyncio.gather(in_front, behind)
        assert names(cache) == ["wrong:20"]

    run(test, budget=30, estimate=lambda spec: 5 if spec.name == "wrong:20" else foreseen(spec))


def test_what_was_measured_once_is_known() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "a")
        async with cache.use(spec("b")):
            newcomer = asyncio.create_task(touch(cache, "a"))
            await until_async(lambda: cache.stats().waiting == 1)
            assert loader.loads == ["a", "b"]
        await newcomer

    run(test, budget=10)


def test_a_forward_pass_that_nobody_waits_for_still_holds_its_model() -> None:
    """Its caller has hung up, but the device is not done: only then is the memory free for the next model."""
    begun, done = threading.Event(), threading.Event()

    async def test(cache: ModelCache, loader: Loader) -> None:
        async def caller() -> None:
            async with cache.use(spec("a")) as model:
                await asyncio.get_running_loop().run_in_executor(loader.pool, hold, [model])

        def hold(models: list[Model]) -> None:
            begun.set()
            assert done.wait(WAIT_S)
            loader.loads.append("the forward pass is done")
            models.clear()

        impatient = asyncio.create_task(caller())
        await until_async(begun.is_set)
        impatient.cancel()
        await asyncio.wait([impatient])
        newcomer = asyncio.create_task(touch(cache, "b"))
        await until_async(lambda: cache.stats().evictions == 1)
        await settle()
        done.set()
        await newcomer
        assert loader.loads == ["a", "the forward pass is done", "b"]

    run(test, budget=10, estimate=foreseen)


def test_a_failed_load_costs_nobody_anything() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("a")):
            for _ in range(3):
                with pytest.raises(RequestError, match="cannot load bad"):
                    await touch(cache, "bad")
            assert cache.stats().bytes == 10
            await touch(cache, "b")
        assert names(cache) == ["a", "b"]
        assert cache.stats().failed_loads == 3

    run(test, budget=20, estimate=foreseen)


def test_an_estimate_that_refuses() -> None:
    def refuse(spec: ModelSpec) -> int:
        raise RequestError(Fault.REFUSED, "not allowed")

    async def test(cache: ModelCache, loader: Loader) -> None:
        with pytest.raises(RequestError, match="not allowed"):
            await touch(cache, "a")
        assert loader.loads == []
        assert cache.stats().bytes == 0

    run(test, budget=20, estimate=refuse)


def test_a_model_that_is_never_idle_cannot_keep_others_out() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        served = 0
        done = False

        async def keep_busy(offset: int) -> None:
            """Two of these overlap: without more ado the model would have a user at every moment."""
            nonlocal served
            await asyncio.sleep(offset * 0.01)
            while not done:
                async with cache.use(spec("hot")):
                    served += 1
                    await asyncio.sleep(0.02)

        await touch(cache, "hot")
        busy = [asyncio.create_task(keep_busy(i)) for i in range(2)]
        await until_async(lambda: served > 2)
        assert (await touch(cache, "cold")).info.name == "cold"
        before = served
        await until_async(lambda: served > before)  # it is served again afterwards
        done = True
        await asyncio.gather(*busy)

    run(test, budget=10, estimate=foreseen, drain_after_s=0.2)


def test_nothing_is_loaded_for_those_who_have_hung_up() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("a")):
            callers = [asyncio.create_task(touch(cache, "b")) for _ in range(3)]
            await until_async(lambda: cache.stats().waiting == 1)
            for caller in callers[:2]:
                caller.cancel()
            # At once: that wakes the load, which must not take its end for one more look at the budget.
            await asyncio.wait(callers[:2])
            assert cache.stats().waiting == 1
            callers[2].cancel()
            another = asyncio.create_task(touch(cache, "b"))
            await until_async(callers[2].cancelled)
            await until_async(lambda: cache.stats().waiting == 1)
            another.cancel()
            await until_async(lambda: cache.stats().waiting == 0)
            at_last = asyncio.create_task(touch(cache, "c"))
            await until_async(lambda: cache.stats().waiting == 1)
        await at_last
        assert loader.loads == ["a", "c"]

    run(test, budget=10, estimate=foreseen)


class Full(Loader):
    """A device whose memory is full for as long as more than `most` other models are alive."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.alive: list[weakref.ref[Model]] = []
        self.released = 0

    def __call__(self, spec: ModelSpec) -> Model:
        if sum(model() is not None for model in self.alive) > self.most:
            raise MemoryError("no memory for 10 bytes")
        model = super().__call__(spec)
        self.alive.append(weakref.ref(model))
        return model

    def release(self) -> None:
        self.released += 1


def on_a_full_device(most: int, test: Callable[[ModelCache, Full], Awaitable[None]]) -> None:
    async def main() -> None:
        loader = Full(most)
        with ThreadPoolExecutor(4) as executor:
            cache = ModelCache(loader, executor, release=loader.release)
            await asyncio.wait_for(test(cache, loader), WAIT_S)

    asyncio.run(main())


def test_out_of_memory_ejects_what_is_idle_and_tries_again() -> None:
    async def test(cache: ModelCache, loader: Full) -> None:
        await touch(cache, "a")
        async with cache.use(spec("used")):
            await touch(cache, "b")
            assert names(cache) == ["used", "b"]
            assert loader.released == 1
            assert cache.stats().out_of_memory == 1
            with pytest.raises(RequestError, match=r"Unable to load model 'c'.*of other models in use") as caught:
                async with cache.use(spec("b")):
                    await touch(cache, "c")
            assert caught.value.fault is Fault.OVERLOADED
            assert names(cache) == ["used", "b"]
        await touch(cache, "c")
        assert names(cache) == ["c"]

    on_a_full_device(1, test)


def test_out_of_memory_even_alone() -> None:
    async def test(cache: ModelCache, loader: Full) -> None:
        with pytest.raises(RequestError, match=r"memory is full, even without.*no memory for 10 bytes") as caught:
            await touch(cache, "a")
        assert caught.value.fault is Fault.REFUSED
        assert names(cache) == []

    on_a_full_device(-1, test)


def test_counters() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        for name in ("a", "b", "c"):
            await touch(cache, name)
        cache.eject(lambda info: info.name == "c")
        stats = cache.stats()
        assert (stats.loads, stats.evictions, stats.ejections, stats.failed_loads) == (3, 1, 1, 0)
        assert (stats.bytes, stats.budget_bytes, stats.waiting) == (10, 20, 0)
        assert stats.load_seconds > 0

    run(test, budget=20, estimate=foreseen)
