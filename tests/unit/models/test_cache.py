"""The models of a replica: loaded once, counted in bytes, never taken from a user."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from embedding.errors import Fault, RequestError
from embedding.models.cache import ModelCache
from embedding.models.spec import ModelSpec
from tests.support.cache import Loader, foreseen, names, run, spec, touch
from tests.support.waiting import until_async

Estimate = Callable[[ModelSpec], int] | None


def test_a_model_is_loaded_once_and_kept() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        first = await touch(cache, "a")
        assert await touch(cache, "a") is first
        assert loader.loads == ["a"]
        assert names(cache) == ["a"]

    run(test)


def test_however_many_ask_at_once() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("a")
        callers = [asyncio.create_task(touch(cache, "a")) for _ in range(20)]
        await loader.loading("a")
        gate.set()
        models = await asyncio.gather(*callers)
        assert len(set(map(id, models))) == 1
        assert loader.loads == ["a"]

    run(test)


def test_others_are_served_while_one_loads() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("slow")
        slow = asyncio.create_task(touch(cache, "slow"))
        await loader.loading("slow")
        await touch(cache, "a")
        await touch(cache, "a")
        assert not slow.done()
        gate.set()
        await slow

    run(test)


def test_who_hangs_up_does_not_cost_the_others_their_model() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("a")
        impatient, patient = (asyncio.create_task(touch(cache, "a")) for _ in range(2))
        await loader.loading("a")
        impatient.cancel()
        await asyncio.wait([impatient])
        gate.set()
        assert (await patient).info.name == "a"
        assert impatient.cancelled()
        assert loader.loads == ["a"]

    run(test)


def test_all_learn_of_a_failure_and_the_next_may_try_again() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("bad")
        callers = [asyncio.create_task(touch(cache, "bad")) for _ in range(3)]
        await loader.loading("bad")
        gate.set()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["cannot load bad"] * 3
        with pytest.raises(RequestError, match="cannot load bad"):
            await touch(cache, "bad")
        assert loader.loads == ["bad", "bad"]
        assert names(cache) == []

    run(test)


def test_the_least_recently_used_goes_first() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        for name in ("a", "b", "c", "a", "d"):
            await touch(cache, name)
        assert names(cache) == ["c", "a", "d"]
        await touch(cache, "big:20")
        assert names(cache) == ["d", "big:20"]

    run(test, budget=30)


def test_without_a_budget_everything_stays() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        for i in range(50):
            await touch(cache, f"{i}:1000000000000")
        assert len(names(cache)) == 50

    run(test)


def test_a_model_in_use_is_not_taken_away_and_the_newcomer_waits() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with AsyncExitStack() as stack:
            used = await stack.enter_async_context(cache.use(spec("used")))
            await touch(cache, "idle")
            loader.gate("big:20").set()
            newcomer = asyncio.create_task(touch(cache, "big:20"))
            await loader.loading("big:20")
            await until_async(lambda: cache.stats().waiting == 1)
            assert not newcomer.done()
            assert "used" in names(cache)
            assert await touch(cache, "used") is used
        assert (await newcomer).info.name == "big:20"
        assert names(cache) == ["big:20"]

    run(test, budget=20)


def test_too_large_for_the_whole_budget() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "a")
        with pytest.raises(RequestError, match=r"Unable to load model 'big:31'.*31 bytes.*30") as caught:
            await touch(cache, "big:31")
        assert caught.value.fault is Fault.REFUSED
        assert names(cache) == ["a"]
        await touch(cache, "big:30")

    run(test, budget=30)


def test_two_that_load_together_keep_to_the_budget() -> None:
    """Each is in its user's hands before the other may push it out, even if both arrive in the same instant."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        in_use = 0
        most = 0
        done: list[str] = []

        async def hold(name: str) -> None:
            nonlocal in_use, most
            async with cache.use(spec(name)) as model:
                in_use += model.info.nbytes
                most = max(most, in_use)
                # The first one holds its model until the other waits for that memory.
                await until_async(lambda: bool(done) or cache.stats().waiting == 1)
                in_use -= model.info.nbytes
                done.append(name)

        gates = [loader.gate(name) for name in ("a", "b")]
        callers = [asyncio.create_task(hold(name)) for name in ("a", "b")]
        for name in ("a", "b"):
            await loader.loading(name)
        for gate in gates:
            gate.set()
        loader.pool.shutdown(wait=True)  # blocks the event loop too, which then sees both results at once
        await asyncio.gather(*callers)
        assert most == 10
        assert loader.loads == ["a", "b"]

    run(test, budget=10)


def test_an_ejected_model_serves_its_users_and_is_loaded_anew() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("a")) as model:
            await touch(cache, "b")
            assert [info.name for info in cache.eject(lambda info: info.name == "a")] == ["a"]
            assert names(cache) == ["b"]
            assert model.info.name == "a"
            assert await touch(cache, "a") is not model
        assert cache.eject(lambda info: False) == []
        assert loader.loads == ["a", "b", "a"]
        assert names(cache) == ["b", "a"]

    run(test)


def test_an_ejected_model_in_use_still_counts() -> None:
    """Its memory is taken until its last user is done: nothing may be loaded into that place before."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(cache.use(spec("a")))
            cache.eject(lambda info: True)
            loader.gate("b").set()
            newcomer = asyncio.create_task(touch(cache, "b"))
            await loader.loading("b")
            await until_async(lambda: cache.stats().waiting == 1)
            assert not newcomer.done()
        await newcomer

    run(test, budget=10)


@pytest.mark.parametrize("estimate", [None, foreseen])
def test_a_model_that_is_ejected_while_it_loads_does_not_stay(estimate: Estimate) -> None:
    """Requests that wait for it get their answers; later ones get a model that was loaded after the ejection."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("a")
        callers = [asyncio.create_task(touch(cache, "a")) for _ in range(2)]
        await loader.loading("a")
        assert [info.key for info in cache.eject(lambda info: info.name == "a")] == [spec("a").key]
        later = asyncio.create_task(touch(cache, "a"))
        await until_async(lambda: loader.loads == ["a", "a"])
        gate.set()
        first, second = await asyncio.gather(*callers)
        assert first is second
        assert await later is not first
        assert loader.loads == ["a", "a"]
        assert cache.eject(lambda info: True) == [first.info]
        assert names(cache) == []
        assert cache.stats().bytes == 0
        assert cache.stats().ejections == 2

    run(test, budget=30, estimate=estimate)


@pytest.mark.parametrize("hang_up", [False, True])
def test_an_ejected_load_counts_until_its_end(hang_up: bool) -> None:
    """Even if no request waits for it any more: what has begun takes its memory."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("a")
        caller = asyncio.create_task(touch(cache, "a"))
        await loader.loading("a")
        cache.eject(lambda info: True)
        if hang_up:
            caller.cancel()
        newcomer = asyncio.create_task(touch(cache, "b"))
        await until_async(lambda: cache.stats().waiting == 1)
        assert loader.loads == ["a"]
        assert cache.stats().bytes == 10
        gate.set()
        await newcomer
        await asyncio.wait([caller])
        assert names(cache) == ["b"]
        assert cache.stats().bytes == 10

    run(test, budget=10, estimate=foreseen)


def test_an_ejected_load_that_fails_leaves_nothing() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("bad")
        caller = asyncio.create_task(touch(cache, "bad"))
        await loader.loading("bad")
        cache.eject(lambda info: True)
        gate.set()
        with pytest.raises(RequestError, match="cannot load bad"):
            await caller
        assert names(cache) == []
        assert cache.stats().bytes == 0

    run(test, budget=10, estimate=foreseen)


def test_an_ejected_load_is_not_taken_for_another_model() -> None:
    """Neither by itself nor, when it has failed, by the next: that the device is full is then not for others to end."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("full")
        caller = asyncio.create_task(touch(cache, "full"))
        await loader.loading("full")
        cache.eject(lambda info: True)
        gate.set()
        for attempt in (caller, touch(cache, "full")):
            with pytest.raises(RequestError, match="even without other models") as caught:
                await attempt
            assert caught.value.fault is Fault.REFUSED

    run(test)


def test_a_load_that_waits_in_line_can_be_ejected() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("used")):
            waiting, gone = (asyncio.create_task(touch(cache, name)) for name in ("a", "b"))
            await until_async(lambda: cache.stats().waiting == 2)
            assert len(cache.eject(lambda info: info.name != "used")) == 2
            gone.cancel()
            await until_async(lambda: cache.stats().waiting == 1)
        assert (await waiting).info.name == "a"
        assert loader.loads == ["used", "a"]
        assert names(cache) == []
        assert cache.stats().bytes == 0

    run(test, budget=10, estimate=foreseen)


def test_credentials_do_not_make_another_model() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        for auth in (None, '{"hf": {"token": "x"}}'):
            async with cache.use(ModelSpec("a", "{}", auth_json=auth)):
                pass
        assert loader.loads == ["a"]

    run(test)


@pytest.mark.parametrize("other", [ModelSpec("b", "{}"), ModelSpec("a", '{"size":1}'), ModelSpec("a", "{}", "cpu")])
def test_name_properties_and_device_do(other: ModelSpec) -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("a")), cache.use(other):
            assert len(loader.loads) == 2

    run(test)
