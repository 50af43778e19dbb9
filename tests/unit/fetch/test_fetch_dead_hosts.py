"""Hosts that are taken for dead, or not: requests get their pictures when a host is back, and no other host waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch import transfer
from embedding.fetch.breaker import CircuitBreaker
from embedding.fetch.fetcher import Fetcher, FetchOptions
from tests.support.fetch import FakeResolver, answer_up, cancelled, fetching, lost, outcomes, started, unused_port
from tests.support.waiting import until_async


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"a": bytes(100_000), "small": b"small"}) as host:
        yield host


@pytest.fixture
def soon_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer counts as silent after 0.4 s, in place of the 3 s that pictures usually have."""
    monkeypatch.setattr(transfer, "MIN_SILENCE_S", 0.4)


async def opened(fetcher: Fetcher, port: int) -> CircuitBreaker:
    """The breaker of a host that is being asked, as soon as it is open."""
    hosts = fetcher._scheduler._hosts
    name = f"127.0.0.1:{port}"
    await until_async(lambda: name in hosts and hosts[name].breaker.is_open)
    return hosts[name].breaker


def test_a_healthy_host_after_a_bad_minute(host: ImageHost, soon_silent: None) -> None:
    """Slow answers do not open the breaker, and what it was opened for is over: all pictures arrive."""

    async def run() -> tuple[list[str], list[str]]:
        async with fetching(breaker_pause_s=0.3, breaker_silence_s=0.2) as fetcher:
            slow = await outcomes(fetcher, [host.url("/ok/small?delay=9")] * 40, FetchOptions(500))
            await asyncio.sleep(0.4)  # the breaker's own time
            return slow, await outcomes(fetcher, [host.url("/ok/a")] * 64, FetchOptions(request="new"))

    slow, good = asyncio.run(run())
    assert len(lost(slow)) == 40
    assert lost(good) == []


def test_short_limits_of_one_caller_open_no_breaker(host: ImageHost) -> None:
    async def run() -> list[str]:
        async with fetching(breaker_silence_s=0.1) as fetcher:
            await outcomes(fetcher, [host.url("/hang")] * 40, FetchOptions(200))
            return await outcomes(fetcher, [host.url("/ok/small")], FetchOptions())

    assert lost(asyncio.run(run())) == []


def test_slow_bodies_open_no_breaker(host: ImageHost, soon_silent: None) -> None:
    async def run() -> list[str]:
        async with fetching(breaker_failures=2, breaker_silence_s=0.1) as fetcher:
            await outcomes(fetcher, [host.url("/drip?every=5")] * 8, FetchOptions(500))
            return await outcomes(fetcher, [host.url("/ok/small")], FetchOptions())

    assert lost(asyncio.run(run())) == []


def test_who_waits_for_a_host_that_comes_back_gets_its_pictures() -> None:
    port = unused_port()
    url = f"http://127.0.0.1:{port}/"

    async def run() -> list[str]:
        async with fetching(breaker_failures=3, breaker_pause_s=0.3) as fetcher:
            waiting = asyncio.create_task(outcomes(fetcher, [url] * 64, FetchOptions(3000)))
            breaker = await opened(fetcher, port)
            first_pause = breaker.open_until or 0
            # A probe has failed.
            await until_async(lambda: (breaker.open_until or 0) > first_pause + 0.2)
            async with await asyncio.start_server(answer_up, "127.0.0.1", port):
                return await waiting

    results = asyncio.run(run())
    assert 0 < len(lost(results)) <= 16  # those that were refused a connection
    assert all("Connection refused" in result for result in lost(results))


@pytest.mark.parametrize("limit_ms", [300, 1000])
def test_a_dead_host_costs_its_request_little_more_than_its_time_limit(limit_ms: int) -> None:
    url = f"http://127.0.0.1:{unused_port()}/"

    async def run() -> list[str]:
        async with fetching() as fetcher:
            return await outcomes(fetcher, [url] * 640, FetchOptions(limit_ms))

    start = time.monotonic()
    results = asyncio.run(run())
    assert len(lost(results)) == 640
    assert sum("in a row" in result for result in results) > 600
    assert time.monotonic() - start < limit_ms / 1000 + 4  # one pause of the breaker is 5 s


def test_a_dead_host_delays_no_other(host: ImageHost) -> None:
    port = unused_port()
    dead = [f"http://127.0.0.1:{port}/"] * 640

    async def run() -> None:
        async with fetching() as fetcher:
            waiting = started(fetcher, dead, FetchOptions(20_000, request="dead"))
            await opened(fetcher, port)
            assert lost(await outcomes(fetcher, [host.url("/ok/small")] * 100, FetchOptions())) == []
            assert sum(not task.done() for task in waiting) > 600
            await cancelled(waiting)

    asyncio.run(run())


def test_an_opening_and_a_closing_are_logged_once(host: ImageHost, caplog: pytest.LogCaptureFixture) -> None:
    port = unused_port()
    url = f"http://127.0.0.1:{port}/"

    async def run() -> None:
        async with fetching(breaker_failures=3, breaker_pause_s=0.1) as fetcher:
            await outcomes(fetcher, [url] * 20, FetchOptions(300))
            async with await asyncio.start_server(answer_up, "127.0.0.1", port):
                assert lost(await outcomes(fetcher, [url] * 20, FetchOptions())) == []

    asyncio.run(run())
    messages = [record.getMessage() for record in caplog.records if record.name == "ray.serve"]  # Serve's log files
    assert len(messages) == 2
    assert f"127.0.0.1:{port} is left alone" in messages[0]
    assert "Connection refused" in messages[0]
    assert "answers again" in messages[1]


def test_a_host_with_neither_memory_nor_waiting_is_forgotten(host: ImageHost) -> None:
    names = FakeResolver({f"h{i}.example.com": "127.0.0.1" for i in range(30)})

    async def run() -> int:
        async with fetching(names) as fetcher:
            fetcher._scheduler._max_hosts = 10
            urls = [host.url("/ok/small", name) for name in names.names]
            assert lost(await outcomes(fetcher, urls, FetchOptions())) == []
            return len(fetcher._scheduler._idle_hosts)

    assert asyncio.run(run()) == 10
