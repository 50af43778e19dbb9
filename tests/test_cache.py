"""The models of a replica: loaded once, counted in bytes, never taken from a user. Gates stand for slow loading."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from embedding.errors import Fault, RequestError
from embedding.models.cache import ModelCache
from embedding.models.loader import estimate_bytes, load_model
from embedding.models.model import Model
from embedding.models.openclip import add_architectures
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.protocol import ModelConfig

WAIT_S = 10


@dataclass(eq=False)
class Weights:
    """A model as far as the cache is concerned: it knows its size."""

    info: ModelInfo


class Loader:
    """Loads models of 10 bytes, or of as many as their names say (`big:40`); those in `gates` when they are opened."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.started: dict[str, threading.Event] = {}
        self.pool = ThreadPoolExecutor(4)

    def gate(self, name: str) -> threading.Event:
        self.started[name] = threading.Event()
        self.gates[name] = threading.Event()
        return self.gates[name]

    def __call__(self, spec: ModelSpec) -> Weights:
        self.loads.append(spec.name)
        if spec.name in self.gates:
            self.started[spec.name].set()
            assert self.gates[spec.name].wait(WAIT_S)
        if spec.name.startswith("bad"):
            raise RequestError(Fault.REFUSED, f"cannot load {spec.name}")
        _, _, nbytes = spec.name.partition(":")
        return Weights(ModelInfo(spec.name, spec.name + "||0000", "cpu", 4, None, "{}", int(nbytes or 10)))

    async def loading(self, name: str) -> None:
        assert await asyncio.to_thread(self.started[name].wait, WAIT_S)


def spec(name: str) -> ModelSpec:
    return ModelSpec(name, "{}")


def run(test: Callable[[ModelCache, Loader], Awaitable[None]], budget: int = 0, **settings: Any) -> None:
    loader = Loader()

    async def main() -> None:
        with loader.pool as executor:
            try:
                await asyncio.wait_for(test(ModelCache(loader, executor, budget, **settings), loader), WAIT_S)
            finally:
                for gate in loader.gates.values():
                    gate.set()

    asyncio.run(main())


async def touch(cache: ModelCache, name: str) -> Weights:
    async with cache.use(spec(name)) as model:
        return model


def names(cache: ModelCache) -> list[str]:
    return [info.name for info in cache.infos()]


async def settle() -> None:
    """Lets every task that can run do so, also one whose model comes from its thread in this very moment."""
    for _ in range(5):
        await asyncio.to_thread(lambda: None)
        await asyncio.sleep(0)


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
            await settle()
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

        async def hold(name: str) -> None:
            nonlocal in_use, most
            async with cache.use(spec(name)) as model:
                in_use += model.info.nbytes
                most = max(most, in_use)
                await settle()
                in_use -= model.info.nbytes

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
            await settle()
            assert not newcomer.done()
        await newcomer

    run(test, budget=10)


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


# --- Sizes that are known beforehand ---


def foreseen(spec: ModelSpec) -> int:
    """As `Loader` will have it, unless the name says otherwise: `NAME:ACTUAL:FORESEEN`."""
    parts = spec.name.split(":")
    return int(parts[-1]) if len(parts) > 1 else 10


def test_room_is_made_before_the_load() -> None:
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
            await settle()
            assert cache.stats().waiting == 2
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
        def __call__(self, spec: ModelSpec) -> Weights:
            model = super().__call__(ModelSpec(spec.name.rpartition(":")[0] if spec.name == name else spec.name, "{}"))
            return Weights(dataclasses.replace(model.info, name=spec.name))

    async def main() -> None:
        with ThreadPoolExecutor(4) as executor:
            loader = Sized()
            await asyncio.wait_for(test(ModelCache(loader, executor, 30, foreseen), loader), WAIT_S)

    asyncio.run(main())


def test_who_was_underestimated_does_not_stand_in_anybodys_way() -> None:
    """The one in front waits for all of the budget, of which the one behind would hold a part for ever."""

    async def test(cache: ModelCache, loader: Loader) -> None:
        gate = loader.gate("wrong:20")
        async with cache.use(spec("a")):
            behind = asyncio.create_task(touch(cache, "wrong:20"))
            await loader.loading("wrong:20")
            in_front = asyncio.create_task(touch(cache, "big:30"))
            await settle()
            gate.set()
            await settle()
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
            await settle()
            assert loader.loads == ["a", "b"]
        await newcomer

    run(test, budget=10)


def test_a_forward_pass_that_nobody_waits_for_still_holds_its_model() -> None:
    """Its caller has hung up, but the device is not done: only then is the memory free for the next model."""
    done = threading.Event()

    async def test(cache: ModelCache, loader: Loader) -> None:
        async def caller() -> None:
            async with cache.use(spec("a")) as model:
                await asyncio.get_running_loop().run_in_executor(loader.pool, hold, [model])

        def hold(models: list[Model]) -> None:
            assert done.wait(WAIT_S)
            models.clear()

        impatient = asyncio.create_task(caller())
        await settle()
        impatient.cancel()
        newcomer = asyncio.create_task(touch(cache, "b"))
        await asyncio.sleep(0.1)
        assert loader.loads == ["a"]
        done.set()
        await newcomer

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
        await asyncio.sleep(0.05)
        assert (await touch(cache, "cold")).info.name == "cold"
        before = served
        await asyncio.sleep(0.2)
        assert served > before, "and it is served again afterwards"
        done = True
        await asyncio.gather(*busy)

    run(test, budget=10, estimate=foreseen, patience_s=0.2)


def test_nothing_is_loaded_for_those_who_have_hung_up() -> None:
    async def test(cache: ModelCache, loader: Loader) -> None:
        async with cache.use(spec("a")):
            callers = [asyncio.create_task(touch(cache, "b")) for _ in range(3)]
            await settle()
            assert cache.stats().waiting == 1
            for caller in callers[:2]:
                caller.cancel()
            await settle()
            assert cache.stats().waiting == 1
            callers[2].cancel()
            another = asyncio.create_task(touch(cache, "b"))
            await settle()
            assert callers[2].cancelled()
            assert cache.stats().waiting == 1
            another.cancel()
            await settle()
            assert cache.stats().waiting == 0
            at_last = asyncio.create_task(touch(cache, "c"))
            await settle()
        await at_last
        assert loader.loads == ["a", "c"]

    run(test, budget=10, estimate=foreseen)


class Full(Loader):
    """A device whose memory is full for as long as more than `most` other models are alive."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.alive: list[weakref.ref[Weights]] = []
        self.released = 0

    def __call__(self, spec: ModelSpec) -> Weights:
        if sum(model() is not None for model in self.alive) > self.most:
            raise MemoryError("no room for 10 bytes")
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
        with pytest.raises(RequestError, match=r"memory is full, even without.*no room for 10 bytes") as caught:
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


# --- Real models ---

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
MODELS, CLIENTS = 20, 8


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that the threads of a forward pass would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSpec]:
    """Twenty models of one architecture, with weights of their own."""
    folder = tmp_path_factory.mktemp("twenty")
    (folder / "tiny-of-twenty.json").write_text(json.dumps(TINY))
    add_architectures(folder)
    specs = []
    for i in range(MODELS):
        torch.manual_seed(i)
        module = open_clip.create_model("tiny-of-twenty", require_pretrained=False)
        path = folder / f"{i}.safetensors"
        save_file({name: w.contiguous() for name, w in module.state_dict().items()}, path)
        properties = {"name": "tiny-of-twenty", "dimensions": 8, "size": 16, "localpath": str(path)}
        specs.append(ModelSpec.from_config(ModelConfig(model_name=f"m{i}", model_properties=properties)))
    return specs


@pytest.mark.usefixtures("one_thread")
def test_twenty_models_through_room_for_five(checkpoints: list[ModelSpec]) -> None:
    """From eight clients at random: every vector right, and never more models alive than there is room for."""
    device = torch.device("cpu")
    (nbytes,) = {load_model(spec, device).info.nbytes for spec in checkpoints[:2]}
    expected = {spec: vector(load_model(spec, device)) for spec in checkpoints}
    alive: list[weakref.ref[Model]] = []
    most = 0

    def load(spec: ModelSpec) -> Model:
        nonlocal most
        model = load_model(spec, device)
        alive.append(weakref.ref(model))
        alive[:] = [reference for reference in alive if reference() is not None]
        most = max(most, len(alive))
        return model

    async def client(cache: ModelCache, seed: int) -> None:
        chooser = random.Random(seed)
        for _ in range(6):
            spec = chooser.choice(checkpoints)
            async with cache.use(spec) as model:
                found = await asyncio.to_thread(vector, model)
            np.testing.assert_array_equal(found, expected[spec])
            assert cache.stats().bytes <= 5 * nbytes + 10
            del model

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            cache = ModelCache(load, executor, 5 * nbytes + 10, lambda spec: estimate_bytes(spec, device))
            await asyncio.wait_for(asyncio.gather(*(client(cache, i) for i in range(CLIENTS))), 60)
            stats = cache.stats()
            assert stats.failed_loads == 0
            assert stats.loads - stats.evictions == len(cache.infos()) <= 5

    asyncio.run(main())
    assert 4 <= most <= 5


def vector(model: Model) -> np.ndarray:
    return model.encode_texts([model.tokenize(["a red circle"])])
