"""Limits of downloads: time, bytes and transfers at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

from benchmarks.lib.image_host import ImageHost
from deployments.preprocessor.parts import DownloadOptions
from deployments.preprocessor.transfer_pools import TransferPools
from embedding.fetch.fetcher import FetchOptions
from tests.support.fetch import (  # noqa: F401
    DOWNLOAD,
    PICTURE,
    FakeResolver,
    cancelled,
    failure,
    failure_of,
    fetch,
    fetching,
    host,
    server,
    started,
)


@pytest.mark.parametrize("path", ["/hang", "/drip", "/drip?every=0.01", "/lie-length", "/ok/a.jpg?delay=9"])
def test_the_time_limit_ends_a_transfer_and_frees_it(host: ImageHost, path: str) -> None:
    async def timed() -> float:
        async with fetching(max_bytes=2**60) as fetcher:
            start = time.monotonic()
            message = await failure_of(fetcher, host.url(path), timeout_ms=200)
            took = time.monotonic() - start
            assert DOWNLOAD in message
            assert "200 ms" in message
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            return took

    assert 0.19 < asyncio.run(timed()) < 2.9  # the default is 3 s


def test_the_time_limit_spans_redirects(host: ImageHost) -> None:
    url = host.url("/redirect-to?delay=0.2&url=" + quote("/redirect-to?delay=0.2&url=/ok/b.jpg"))
    assert "300 ms" in failure(url, timeout_ms=300)
    assert fetch(url, timeout_ms=3000) == [b"b"]


@pytest.mark.parametrize("timeout_ms", [0, -1])
def test_no_time_limit_means_the_default(host: ImageHost, timeout_ms: int) -> None:
    assert fetch(host.url("/ok/b.jpg"), timeout_ms=timeout_ms) == [b"b"]


def test_the_time_limit_has_a_limit(host: ImageHost) -> None:
    assert "150 ms" in failure(host.url("/hang"), timeout_ms=10**12, max_timeout_ms=150)


@pytest.mark.parametrize("path", ["/endless", "/ok/a.jpg", "/chunked/a.jpg", "/close/a.jpg", "/lie-length"])
def test_bytes_are_counted_as_they_arrive(host: ImageHost, path: str) -> None:
    async def limited() -> None:
        async with fetching(max_bytes=50_000) as fetcher:
            message = await failure_of(fetcher, host.url(path))
            assert "50000" in message
            assert "allowed" in message
            if not path.endswith("a.jpg"):  # those are over already
                assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            assert await fetcher.fetch(host.url("/ok/b.jpg"), FetchOptions()) == b"b"

    asyncio.run(limited())


def test_exactly_the_allowed_bytes(host: ImageHost) -> None:
    assert fetch(host.url("/chunked/a.jpg"), max_bytes=len(PICTURE)) == [PICTURE]
    assert "allowed" in failure(host.url("/chunked/a.jpg"), max_bytes=len(PICTURE) - 1)


@pytest.mark.parametrize(
    ("limits", "threads", "peak"),
    [({"max_concurrency": 3}, 20, 3), ({"max_per_host": 2}, 20, 2), ({}, 3, 3), ({}, 0, 1), ({}, 20, 20)],
)
def test_transfers_at_a_time(host: ImageHost, limits: dict[str, Any], threads: int, peak: int) -> None:
    async def many() -> None:
        async with fetching(**limits) as fetcher:
            url = host.url("/ok/b.jpg?delay=0.1")
            await asyncio.gather(*(fetcher.fetch(url, FetchOptions(threads=lambda: 64)) for _ in range(4 * peak)))
            host.peak = 0
            options = FetchOptions(threads=lambda: threads)
            await asyncio.gather(*(fetcher.fetch(url, options) for _ in range(peak + 5)))

    asyncio.run(many())
    assert host.peak == peak


@contextmanager
def joined(pools: TransferPools, threads: int, kept: bool) -> Iterator[FetchOptions]:
    """A call of a request that has several of them at this preprocessor."""
    with pools.joined(DownloadOptions(3000, None, "request", threads, kept)) as pool:
        yield FetchOptions(request="request", threads=pool)


def test_a_redirect_in_an_older_call_does_not_lower_the_limit_of_its_request(host: ImageHost) -> None:
    async def both() -> None:
        pools = TransferPools()
        async with fetching() as fetcher:
            with joined(pools, 1, True) as older, joined(pools, 7, True) as newer:
                redirect = host.url("/redirect-to?delay=0.2&url=/ok/b.jpg")
                redirected = asyncio.create_task(fetcher.fetch(redirect, older))
                await asyncio.to_thread(host.wait_for_requests, 1)
                url = host.url("/ok/b.jpg?delay=0.1")
                others = [asyncio.create_task(fetcher.fetch(url, newer)) for _ in range(40)]
                await redirected
                host.peak = 0
                await asyncio.gather(*others)

    asyncio.run(both())
    assert host.peak == 8


def test_a_call_that_ends_lowers_the_limit_of_its_request_at_once(host: ImageHost) -> None:
    async def both() -> None:
        pools = TransferPools()
        async with fetching() as fetcher:
            with joined(pools, 2, True) as longer:
                with joined(pools, 6, False) as shorter:
                    url = host.url("/ok/b.jpg?delay=0.1")
                    others = [asyncio.create_task(fetcher.fetch(url, longer)) for _ in range(24)]
                    await fetcher.fetch(url, shorter)
                    assert host.peak == 8
                await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
                while sum(not other.done() for other in others) > 12:
                    await asyncio.wait([other for other in others if not other.done()], return_when="FIRST_COMPLETED")
                host.peak = 0
                await asyncio.gather(*others)

    asyncio.run(both())
    assert host.peak == 2


def test_waiting_for_a_slot_is_not_held_against_the_time_limit(host: ImageHost) -> None:
    async def queue() -> list[bytes]:
        async with fetching(max_per_host=1) as fetcher:
            url = host.url("/ok/b.jpg?delay=0.2")
            return await asyncio.gather(*(fetcher.fetch(url, FetchOptions(700)) for _ in range(5)))

    assert asyncio.run(queue()) == [b"b"] * 5


def test_a_slow_host_does_not_hold_up_another(host: ImageHost) -> None:
    names = FakeResolver({"slow.example.com": "127.0.0.1", "quick.example.com": "127.0.0.1"})

    async def both() -> None:
        async with fetching(names, max_per_host=4, max_concurrency=8) as fetcher:
            slow = started(fetcher, [host.url("/hang", "slow.example.com")] * 40, FetchOptions(20_000, request="slow"))
            assert await asyncio.to_thread(host.wait_for, "in_flight", 4)
            quick = host.url("/ok/b.jpg", "quick.example.com")
            await asyncio.gather(*(fetcher.fetch(quick, FetchOptions(request="quick")) for _ in range(40)))
            assert not any(task.done() for task in slow)
            await cancelled(slow)

    asyncio.run(both())


def test_a_cancelled_download_frees_everything(host: ImageHost) -> None:
    async def cancel() -> bytes:
        async with fetching(max_per_host=1, max_concurrency=1) as fetcher:
            url = host.url("/hang")
            tasks = [asyncio.create_task(fetcher.fetch(url, FetchOptions())) for _ in range(3)]
            assert await asyncio.to_thread(host.wait_for, "in_flight", 1)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(result, asyncio.CancelledError)
                for result in await asyncio.gather(*tasks, return_exceptions=True)
            )
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            return await fetcher.fetch(host.url("/ok/b.jpg"), FetchOptions())

    assert asyncio.run(cancel()) == b"b"


def test_a_closed_fetcher_refuses(host: ImageHost) -> None:
    async def late() -> str:
        async with fetching() as fetcher:
            hanging = asyncio.create_task(failure_of(fetcher, host.url("/hang")))
            assert await asyncio.to_thread(host.wait_for, "in_flight", 1)
        assert DOWNLOAD in await hanging
        return await failure_of(fetcher, host.url("/ok/b.jpg"))

    assert "shutting down" in asyncio.run(late())
