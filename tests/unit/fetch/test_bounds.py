"""What grows with the names that clients make up has an end: hosts, listed models, homes of models."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import time
import tracemalloc
import weakref
from collections.abc import Iterable

from deployments.encoder.loaded import MESSAGE_BYTES, in_one_message
from deployments.routing import model_key
from embedding.fetch.breaker import CircuitBreaker
from embedding.fetch.host import Host
from embedding.fetch.scheduler import Scheduler
from embedding.models.spec import ModelInfo, ModelSpec


def traced(work: object) -> int:
    """Bytes that a call leaves behind."""
    gc.collect()
    tracemalloc.start()
    work()  # type: ignore[operator]
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after


def info(name: str, **properties: object) -> ModelInfo:
    text = json.dumps({"type": "random", "dimensions": 4, "name": name, **properties})
    return ModelInfo.of(ModelSpec(name, text), "cpu", 4, None, 0)


def test_hosts_that_cannot_exist_are_not_remembered() -> None:
    async def fail(names: Iterable[str], scheduler: Scheduler) -> Host:
        for name in names:
            slot = await scheduler.acquire(name, "request", lambda: 1, 1.0)
            now = time.monotonic()
            slot.failed(now, f"could not resolve the host `{name}`")
            slot.release(now)
        return slot.host

    async def both() -> None:
        scheduler = Scheduler(8, lambda name: Host(name, 8, CircuitBreaker(2, 5.0, 30.0)))
        await fail((f"{i}" + "x" * 16_000 for i in range(2000)), scheduler)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 2**20
        await fail((f"{i}.example" for i in range(2000)), scheduler)
        assert tracemalloc.get_traced_memory()[0] < 4 * 2**20
        assert (await fail(["1.example"], scheduler)).breaker.is_open  # those of a name that may exist count on

    traced(lambda: asyncio.run(both()))


def test_hosts_are_forgotten_after_a_minute_without_transfers() -> None:
    known: weakref.WeakSet[Host] = weakref.WeakSet()
    now = 0.0

    def new_host(name: str) -> Host:
        host = Host(name, 8, CircuitBreaker(2, 5.0, 30.0))
        known.add(host)
        return host

    async def visited(scheduler: Scheduler, names: Iterable[str]) -> None:
        for name in names:
            (await scheduler.acquire(name, "request", lambda: 1, 1.0)).release(now)

    async def run() -> None:
        nonlocal now
        scheduler = Scheduler(8, new_host, clock=lambda: now)
        await visited(scheduler, map(str, range(100)))
        now = 50.0
        await visited(scheduler, ["one more"])
        assert len(known) == 101
        now = 100.0
        await visited(scheduler, ["and another"])
        gc.collect()
        assert {host.name for host in known} == {"one more", "and another"}

    asyncio.run(run())


def test_model_keys_are_not_cached() -> None:
    assert traced(lambda: [model_key(f"{i}" + "x" * 90_000) for i in range(500)] and None) < 2**20
    assert model_key("a") == model_key("a") != model_key("b")


def test_descriptions_fit_into_one_message() -> None:
    for infos in (
        [info(f"long properties {i}", notes="😀" * 90_000) for i in range(100)],
        [info(f"{i}" + "😀" * 90_000) for i in range(100)],
        [info(f"{i}") for i in range(10_000)],
    ):
        sent = in_one_message(infos)
        assert 0 < len(sent) <= len(infos)
        assert sent[-1].key == infos[-1].key
        assert len(pickle.dumps(sent)) < MESSAGE_BYTES * 1.1


def test_long_properties_are_listed_by_what_tells_them_apart() -> None:
    short = info("short", notes="x" * 1000)
    assert short.shortened is short
    long = info("long", notes="x" * 5000)
    assert json.loads(long.shortened.properties_json) == {
        "type": "random",
        "dimensions": 4,
        "name": "long",
        "omitted": f"{len(long.properties_json)} characters",
    }
    assert long.shortened.key == long.key
    odd = info("odd", type=["x" * 5000], dimensions=None)
    assert json.loads(odd.shortened.properties_json).keys() == {"name", "omitted"}
