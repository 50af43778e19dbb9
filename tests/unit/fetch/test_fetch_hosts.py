"""Whom a slow path, a slow host or a large request may delay: no host's pictures wait for another's."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch.fetcher import FetchOptions
from tests.support.fetch import FakeResolver, cancelled, fetching, lost, outcomes, started

PATIENT_MS = 20_000
"""A time limit that is not reached while the rest of a test goes on."""


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"a": bytes(100_000), "small": b"small"}) as host:
        yield host


def test_hanging_paths_of_a_host_do_not_keep_its_pictures_from_their_own_request(host: ImageHost) -> None:
    urls = [host.url("/hang")] * 40 + [host.url("/ok/small")] * 10

    async def run() -> list[str]:
        async with fetching() as fetcher:
            return await outcomes(fetcher, urls, FetchOptions(1000))

    results = asyncio.run(run())
    assert lost(results[40:]) == []
    assert all("not answered after 1000 ms" in result for result in results[:40])


def test_hanging_paths_of_a_host_do_not_block_other_requests_for_it(host: ImageHost) -> None:
    async def run() -> None:
        async with fetching() as fetcher:
            hanging = started(fetcher, [host.url("/hang")] * 32, FetchOptions(PATIENT_MS, request="slow"))
            await asyncio.to_thread(host.wait_for_requests, 4)
            assert lost(await outcomes(fetcher, [host.url("/ok/small")] * 20, FetchOptions(request="quick"))) == []
            assert not any(task.done() for task in hanging)
            await cancelled(hanging)

    asyncio.run(run())


def test_a_dead_host_does_not_block_other_hosts_of_its_request(host: ImageHost) -> None:
    names = FakeResolver({"slow.example.com": "127.0.0.1", "quick.example.com": "127.0.0.1"})
    slow, quick = host.url("/hang", "slow.example.com"), host.url("/ok/small", "quick.example.com")

    async def run() -> None:
        async with fetching(names) as fetcher:
            hanging = started(fetcher, [slow] * 200, FetchOptions(1000))
            await asyncio.to_thread(host.wait_for_requests, 20)
            assert lost(await outcomes(fetcher, [quick] * 40, FetchOptions())) == []
            # The slots that the hanging ones have already become free at their time limits, twenty a second.
            assert sum(task.done() for task in hanging) <= 60
            await cancelled(hanging)

    asyncio.run(run())


def test_a_large_request_and_a_small_one_take_turns(host: ImageHost) -> None:
    async def run() -> None:
        async with fetching() as fetcher:
            urls = [host.url("/ok/small?delay=0.1")] * 2000
            large = started(fetcher, urls, FetchOptions(request="large"))
            await asyncio.to_thread(host.wait_for_requests, 4)
            small = await outcomes(fetcher, urls[:8], FetchOptions(request="small"))
            assert lost(small) == []
            assert sum(task.done() for task in large) < 200
            await cancelled(large)

    asyncio.run(run())


def test_the_time_of_the_request_is_an_end_of_waiting_too(host: ImageHost) -> None:
    async def run() -> list[str]:
        async with fetching(max_per_host=1) as fetcher:
            return await outcomes(fetcher, [host.url("/hang")] * 3, FetchOptions(within_s=0.3))

    results = sorted(asyncio.run(run()))
    assert "the time of its request was over while it waited for its turn" in results[0]
    assert "the time of its request was over while it was under way" in results[2]


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cyclic garbage."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_many_that_wait_and_leave_cost_little_and_leave_nothing(host: ImageHost) -> None:
    """As tasks that only wait, times a constant; and each costs the same, however many they are. A busy machine can
    double a time, so the quickest of each counts; and the garbage collector's time depends on all other tests."""

    async def wait(count: int) -> float:
        start = time.process_time()
        tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(count)]
        await asyncio.sleep(0)
        await cancelled(tasks)
        return time.process_time() - start

    async def run(count: int) -> float:
        async with fetching() as fetcher:
            urls = [host.url("/hang")] * count
            seen = len(host.requests)
            start = time.process_time()
            waiting = asyncio.create_task(outcomes(fetcher, urls, FetchOptions()))
            await asyncio.to_thread(host.wait_for_requests, seen + 20)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            spent = time.process_time() - start
            scheduler = fetcher._scheduler
            assert (
                scheduler.running,
                len(scheduler._hosts),
                len(scheduler._requests),
                len(scheduler._ready_requests),
            ) == (0, 0, 0, 0)
            return spent

    some, many = 2000, 8000
    with uncollected():
        times = [(asyncio.run(run(some)), asyncio.run(run(many)), asyncio.run(wait(many))) for _ in range(3)]
    print(times)
    of_some, of_many, of_waiting = (min(column) for column in zip(*times, strict=True))
    assert of_many < 30 * of_waiting
    assert of_many / many < 2 * of_some / some
