"""A model cache with a loader that tests control: gates stand for slow loading, names for sizes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

from embedding.errors import Fault, RequestError
from embedding.models.cache import ModelCache
from embedding.models.model import Model
from embedding.models.spec import ModelInfo, ModelSpec

WAIT_S = 10


@dataclass(eq=False)
class Weights:
    """A model as far as the cache is concerned: it knows its size."""

    info: ModelInfo


def model_of(info: ModelInfo) -> Model:
    return cast(Model, Weights(info))


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

    def __call__(self, spec: ModelSpec) -> Model:
        self.loads.append(spec.name)
        if spec.name in self.gates:
            self.started[spec.name].set()
            assert self.gates[spec.name].wait(WAIT_S)
        if spec.name.startswith("bad"):
            raise RequestError(Fault.REFUSED, f"cannot load {spec.name}")
        if spec.name.startswith("full"):
            raise MemoryError("the device is full")
        _, _, nbytes = spec.name.partition(":")
        return model_of(ModelInfo(spec.name, spec.name + "||0000", "cpu", 4, None, "{}", int(nbytes or 10)))

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


async def touch(cache: ModelCache, name: str) -> Model:
    async with cache.use(spec(name)) as model:
        return model


def names(cache: ModelCache) -> list[str]:
    return [info.name for info in cache.infos()]


async def settle() -> None:
    """Lets every task that can run do so. For what threads have a part in, wait by `until_async`."""
    for _ in range(10):
        await asyncio.sleep(0)


def foreseen(spec: ModelSpec) -> int:
    """As `Loader` will have it, unless the name says otherwise: `NAME:ACTUAL:FORESEEN`."""
    parts = spec.name.split(":")
    return int(parts[-1]) if len(parts) > 1 else 10
