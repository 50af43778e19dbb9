"""The steps of a load, of which none waits for another's kind, and how many models there may be."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest

from embedding.errors import Fault, RequestError
from embedding.models.cache import ModelCache
from embedding.models.model import Model
from embedding.models.spec import ModelSpec
from tests.support.cache import WAIT_S, Loader, foreseen, names, run, settle, spec, touch
from tests.support.waiting import until_async


class Files:
    """Downloads that take until the test says otherwise."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.given_up: list[str] = []
        self.there: dict[str, asyncio.Event] = {}

    async def fetch(self, spec: ModelSpec) -> None:
        self.asked.append(spec.name)
        if spec.name in self.there:
            try:
                await self.there[spec.name].wait()
            except asyncio.CancelledError:
                self.given_up.append(spec.name)
                raise


def is_quick(spec: ModelSpec) -> bool:
    return spec.name.startswith("quick")


def test_neither_downloads_nor_loads_hold_up_what_needs_none() -> None:
    files = Files()

    async def test(cache: ModelCache, loader: Loader) -> None:
        files.there = {f"slow{i}": asyncio.Event() for i in range(20)}
        downloading = [asyncio.create_task(touch(cache, name)) for name in files.there]
        await until_async(lambda: len(files.asked) == 20)
        assert (await touch(cache, "small")).info.name == "small"
        loading = []
        for i in range(4):  # all threads of the loader
            loader.gate(f"huge{i}")
            loading.append(asyncio.create_task(touch(cache, f"huge{i}")))
            await loader.loading(f"huge{i}")
        assert (await touch(cache, "quick")).info.name == "quick"
        assert not any(task.done() for task in (*downloading, *loading))
        for event in files.there.values():
            event.set()
        for gate in loader.gates.values():
            gate.set()
        await asyncio.gather(*downloading, *loading)

    run(test, fetch=files.fetch, quick=is_quick)


def test_downloads_do_not_reserve_memory() -> None:
    """Not even if its size is known from before: its files may have gone since."""
    files = Files()

    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "big:20")
        cache.eject(lambda info: True)
        files.there["big:20"] = asyncio.Event()
        slow = asyncio.create_task(touch(cache, "big:20"))
        await until_async(lambda: files.asked == ["big:20", "big:20"])
        await touch(cache, "a")
        await touch(cache, "b")
        assert cache.stats().bytes == 20
        assert cache.stats().evictions == 0
        files.there["big:20"].set()
        await slow
        assert names(cache) == ["big:20"]

    run(test, budget=20, fetch=files.fetch)


def test_a_download_that_everybody_has_hung_up_on_is_not_loaded() -> None:
    files = Files()

    async def test(cache: ModelCache, loader: Loader) -> None:
        files.there["a"] = asyncio.Event()
        callers = [asyncio.create_task(touch(cache, "a")) for _ in range(2)]
        await until_async(lambda: files.asked == ["a"])
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        await settle()
        assert files.given_up == []
        callers[1].cancel()
        await until_async(lambda: files.given_up == ["a"])
        assert loader.loads == []
        assert cache.stats().failed_loads == 0
        files.there["a"].set()
        assert (await touch(cache, "a")).info.name == "a"
        assert files.asked == ["a", "a"]

    run(test, fetch=files.fetch)


def test_a_session_spans_all_steps() -> None:
    files = Files()
    steps: list[str] = []

    class Session:
        def __enter__(self) -> None:
            steps.append("begin")

        def __exit__(self, *error: object) -> None:
            steps.append("end")

    async def fetch(spec: ModelSpec) -> None:
        steps.append("fetch")
        await files.fetch(spec)

    def estimate(spec: ModelSpec) -> int:
        steps.append("estimate")
        return 10

    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "a")
        assert steps == ["begin", "fetch", "estimate", "end"]
        assert loader.loads == ["a"]
        with pytest.raises(RequestError):
            await touch(cache, "bad")
        assert steps[4:] == ["begin", "fetch", "estimate", "end"]

    run(test, budget=100, fetch=fetch, estimate=estimate, session=Session)


def test_models_are_counted() -> None:
    """Quick ones, of which a client can name thousands, evict no others, nor do loads that fail."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        for i in range(5):
            await touch(cache, f"m{i}")
        assert names(cache) == ["m2", "m3", "m4"]
        for i in range(50):
            await touch(cache, f"quick{i}")
            with pytest.raises(RequestError):
                await touch(cache, f"bad{i}")
        assert names(cache) == ["m2", "m3", "m4", "quick47", "quick48", "quick49"]

    run(test, quick=is_quick, max_models=3)


def test_models_in_use_stay_until_their_last_user_is_done() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("a")), cache.use(spec("b")):
            await touch(cache, "c")
            assert names(cache) == ["a", "b"]
            async with cache.use(spec("d")):
                assert names(cache) == ["a", "b", "d"]
            assert names(cache) == ["a", "b"]

    run(test, max_models=2)


def test_too_many_at_once_are_told_so() -> None:
    files = Files()

    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "there")
        files.there = {f"slow{i}": asyncio.Event() for i in range(3)}
        slow = [asyncio.create_task(touch(cache, name)) for name in files.there]
        await until_async(lambda: len(files.asked) == 4)
        with pytest.raises(RequestError, match="'one more': 3 other models are being loaded") as caught:
            await touch(cache, "one more")
        assert caught.value.fault is Fault.OVERLOADED
        await touch(cache, "there")
        for event in files.there.values():
            event.set()
        await asyncio.gather(*slow)

    run(test, fetch=files.fetch, max_models=3)


def test_what_no_device_could_hold_costs_nobody_a_model() -> None:
    """Without a budget too: else one request would eject all that is idle, to see that it was not enough."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        await touch(cache, "a")
        with pytest.raises(RequestError, match="its weights take 101 bytes, more than the 100"):
            await touch(cache, "full:101")
        assert names(cache) == ["a"]
        assert loader.loads == ["a"]

    run(test, estimate=foreseen, device_bytes=100)


def test_waiting_for_one_download_is_limited() -> None:
    files = Files()

    async def test(cache: ModelCache, loader: Loader) -> None:
        files.there = {name: asyncio.Event() for name in ("slow", "other", "third")}
        waiting = [asyncio.create_task(touch(cache, "slow")) for _ in range(2)]
        await until_async(lambda: files.asked == ["slow"])
        with pytest.raises(RequestError, match="'slow': it is being downloaded, and 2 requests wait") as caught:
            await touch(cache, "slow")
        assert caught.value.fault is Fault.OVERLOADED
        waiting += [asyncio.create_task(touch(cache, "other")) for _ in range(2)]
        await until_async(lambda: files.asked == ["slow", "other"])
        assert (await touch(cache, "there")).info.name == "there"
        for event in files.there.values():
            event.set()
        await asyncio.gather(*waiting)
        await touch(cache, "slow")

    run(test, fetch=files.fetch, max_waiting=4)


@pytest.mark.parametrize("kind", ["quick", "model", "bad", "huge:99"])
def test_names_without_end_take_no_memory_without_end(kind: str) -> None:
    """Descriptions of 90 KB each: loaded, quick, failing, or larger than the budget."""

    def named(i: int) -> ModelSpec:
        return ModelSpec(f"{kind}{'' if ':' in kind else i}", json.dumps({"notes": f"{i} {'x' * 90_000}"}))

    async def ask(cache: ModelCache, numbers: range) -> None:
        for i in numbers:
            try:
                async with cache.use(named(i)):
                    pass
            except RequestError:
                assert kind in ("bad", "huge:99")

    async def test(cache: ModelCache, loader: Loader) -> None:
        await ask(cache, range(100))
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await ask(cache, range(100, 500))
        loader.loads.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # What is kept now was not traced before: all that may be kept of it.
        assert after - before < 6 * 2**20

    run(test, budget=60, estimate=lambda spec: 99 if kind == "huge:99" else 10, quick=is_quick, max_models=50)


# --- Credentials ---


def private(token: str | None, owner: str = "") -> ModelSpec:
    auth = None if token is None else json.dumps({"hf": {"token": token}})
    return ModelSpec("private", '{"name": "secret/repository"}', auth_json=auth, owner=owner)


class Guarded(Loader):
    """A loader that wants credentials."""

    def __call__(self, spec: ModelSpec) -> Model:
        model = super().__call__(ModelSpec("private", "{}", auth_json=spec.auth_json))
        if spec.auth_json != private("good").auth_json:
            raise RequestError(Fault.REFUSED, "wrong token")
        return model


def with_guard(test: Callable[[ModelCache, Guarded], Awaitable[None]]) -> None:
    async def main() -> None:
        loader = Guarded()
        with loader.pool as executor:
            async with asyncio.timeout(WAIT_S):
                await test(ModelCache(loader, executor), loader)

    asyncio.run(main())


def test_somebody_elses_wrong_credentials_cost_nobody_a_model() -> None:
    async def use(cache: ModelCache, spec: ModelSpec) -> None:
        async with cache.use(spec):
            pass

    async def test(cache: ModelCache, loader: Guarded) -> None:
        gate = loader.gate("private")
        attackers = [asyncio.create_task(use(cache, private(token))) for token in ("bad", None, "bad")]
        await loader.loading("private")
        owner = asyncio.create_task(use(cache, private("good")))
        await settle()
        gate.set()
        outcomes = await asyncio.gather(*attackers, owner, return_exceptions=True)
        # The owner's load may also serve the requests that have waited with the wrong ones.
        assert outcomes[-1] is None
        assert isinstance(outcomes[0], RequestError)

    with_guard(test)


def test_an_owners_model_is_not_for_others_and_shows_its_name_alone() -> None:
    async def test(cache: ModelCache, loader: Guarded) -> None:
        async with cache.use(private("good", "owner")):
            pass
        async with cache.use(private("good", "owner")):
            assert loader.loads == ["private"]
        for other in (private(None), private("bad", "another")):
            with pytest.raises(RequestError, match="wrong token"):
                async with cache.use(other):
                    pass
        (info,) = cache.infos()
        assert (info.name, info.key, info.properties_json) == ("private", "private", "{}")
        assert (info.nbytes, info.dimensions, info.image) == (0, 0, None)
        assert len(cache.eject(lambda info: info.name == "private")) == 1
        assert cache.infos() == []

    with_guard(test)
