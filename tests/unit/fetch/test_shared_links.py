"""Hosts on ordinary networks: no good picture is lost because others share its link."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch.fetcher import FetchOptions
from tests.support.fetch import fetching, lost, outcome, outcomes

KB = 1000
PICTURE = bytes(100 * KB)


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"a": PICTURE, "small": b"small"}) as host:
        yield host


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("path", ["/ok/a", "/chunked/a"])
def test_a_shared_link_loses_no_picture(host: ImageHost, clients: int, path: str) -> None:
    """All at once would take three times the limit of each; one alone takes a twentieth of it."""
    host.rate = 4000 * KB

    async def run() -> list[list[str]]:
        async with fetching() as fetcher:
            return await asyncio.gather(
                *(
                    outcomes(fetcher, [host.url(path)] * (60 // clients), FetchOptions(500, request=str(client)))
                    for client in range(clients)
                )
            )

    start = time.monotonic()
    results = asyncio.run(run())
    assert [lost(result) for result in results] == [[]] * clients
    assert time.monotonic() - start < 60 * 100 / 4000 + 4  # a host that is left alone costs a pause of 5 s


def test_a_link_that_becomes_slow_loses_none_of_the_pictures_under_way(host: ImageHost) -> None:
    """What was learnt from a quick link no longer holds; the transfers of then get more time instead."""
    host.rate = 40_000 * KB

    async def run() -> list[str]:
        async with fetching() as fetcher:
            running = asyncio.create_task(outcomes(fetcher, [host.url("/ok/a")] * 120, FetchOptions(500)))
            await asyncio.to_thread(host.wait_for_requests, 60)
            host.rate = 3000 * KB
            return await running

    assert lost(asyncio.run(run())) == []


def test_a_trickle_gets_no_more_time_than_three_limits(host: ImageHost) -> None:
    async def run() -> tuple[float, list[str]]:
        async with fetching() as fetcher:
            good = asyncio.create_task(outcomes(fetcher, [host.url("/ok/a?delay=0.1")] * 60, FetchOptions()))
            start = time.monotonic()
            drip = await outcome(fetcher, host.url("/drip?every=0.05"), FetchOptions(400))
            assert "400 ms" in drip
            return time.monotonic() - start, await good

    took, good = asyncio.run(run())
    assert took < 3 * 0.4 + 3  # its bytes would take half a day
    assert lost(good) == []


def test_a_host_with_a_pace_for_each_connection_is_not_driven_to_one_at_a_time(host: ImageHost) -> None:
    async def run() -> list[str]:
        async with fetching() as fetcher:
            return await outcomes(fetcher, [host.url("/ok/a?pace=320000")] * 60, FetchOptions(750))

    start = time.monotonic()
    assert lost(asyncio.run(run())) == []
    assert time.monotonic() - start < 15  # one at a time would be 19 s


def test_a_host_that_thinks_before_it_answers_is_not_driven_to_one_at_a_time(host: ImageHost) -> None:
    async def run() -> list[str]:
        async with fetching() as fetcher:
            return await outcomes(fetcher, [host.url("/ok/small?delay=0.5")] * 70, FetchOptions(750))

    start = time.monotonic()
    assert lost(asyncio.run(run())) == []
    assert time.monotonic() - start < 17  # one at a time would be 35 s, two at a time half of it


def test_a_host_that_takes_few_connections_gets_no_more(host: ImageHost) -> None:
    host.most_connections = 8

    async def run() -> list[str]:
        async with fetching() as fetcher:
            return await outcomes(fetcher, [host.url("/ok/small?delay=0.1")] * 100, FetchOptions())

    assert lost(asyncio.run(run())) == []
    assert host.refused < 100


def test_a_time_limit_that_ends_between_two_tries_is_an_end(host: ImageHost) -> None:
    """The host takes one connection at a time: while it sends a picture, others are refused and tried again later."""
    unexpected: list[dict[str, Any]] = []

    async def run() -> tuple[str, str]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
        async with fetching(keepalive_s=0) as fetcher:
            # It nearly always answers, so silence is worth another try.
            assert not lost(await outcomes(fetcher, [host.url("/ok/small")] * 40, FetchOptions()))
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            host.most_connections = 1
            slow = asyncio.create_task(outcome(fetcher, host.url("/ok/a?pace=50000"), FetchOptions()))
            assert await asyncio.to_thread(host.wait_for, "in_flight", 1)
            hasty = await outcome(fetcher, host.url("/ok/small"), FetchOptions(300))
            assert not slow.done()
            return hasty, await slow

    hasty, slow = asyncio.run(run())
    assert "its host had not answered after 300 ms" in hasty
    assert host.refused > 1
    assert not slow
    assert not unexpected
