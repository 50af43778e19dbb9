"""Downloads share a budget of bytes, against a real server on loopback."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.errors import MediaError
from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings
from embedding.fetch.memory_budget import MemoryBudget

LARGE = 2 * 2**20
BUDGET = 3 * LARGE
PICTURE = 4_928_307
"""Bytes of a large picture: 4.7 MiB."""
DATA_URI = "data:image/png;base64," + base64.b64encode(bytes(LARGE)).decode()


@pytest.fixture(scope="module")
def host() -> Iterator[ImageHost]:
    with ImageHost({"large": bytes(LARGE), "small": b"small", "picture": bytes(PICTURE)}) as host:
        yield host


@asynccontextmanager
async def fetching(**settings: Any) -> AsyncIterator[Fetcher]:
    limits = {"allowed_networks": "127.0.0.0/8", "max_bytes": LARGE, "max_bytes_in_flight": BUDGET}
    fetcher = Fetcher(FetchSettings(**{**limits, **settings}))
    try:
        yield fetcher
    finally:
        await fetcher.close()


class Holders:
    """Downloads whose bytes are held until they are let go."""

    def __init__(self, fetcher: Fetcher, url: str, timeout_ms: int = 3000) -> None:
        self._fetcher = fetcher
        self._url = url
        self._options = FetchOptions(timeout_ms)
        self.release = asyncio.Event()
        self._changed = asyncio.Event()
        self.holding = 0
        self.most = 0

    async def hold(self) -> int:
        async with self._fetcher.holding(self._url, self._options) as data:
            self.holding += len(data)
            self.most = max(self.most, self.holding)
            self._changed.set()
            await self.release.wait()
            self.holding -= len(data)
        return len(data)

    async def until(self, nbytes: int, within_s: float = 3.0) -> None:
        async with asyncio.timeout(within_s):
            while self.holding < nbytes:
                self._changed.clear()
                await self._changed.wait()


@pytest.mark.parametrize("path", ["/ok/large", "/chunked/large", DATA_URI], ids=["length", "chunked", "data uri"])
def test_no_more_than_the_budget_is_held(host: ImageHost, path: str) -> None:
    item = host.url(path) if path.startswith("/") else path

    async def many() -> tuple[list[int], int]:
        async with fetching() as fetcher:
            holders = Holders(fetcher, item)
            tasks = [asyncio.create_task(holders.hold()) for _ in range(12)]
            await holders.until(LARGE)
            holders.release.set()
            return await asyncio.gather(*tasks), holders.most

    sizes, most = asyncio.run(many())
    assert sizes == [LARGE] * 12
    assert most <= BUDGET


def test_those_who_have_begun_never_wait_for_each_other() -> None:
    """Each holds a start, together all there is, and needs more."""

    async def crowd() -> int:
        budget = MemoryBudget(6)

        async def download() -> None:
            reservation = budget.reservation()
            for nbytes in range(1, 5):
                await reservation.hold(nbytes)
                await asyncio.sleep(0)
            reservation.release()

        async with asyncio.timeout(3):
            await asyncio.gather(*(download() for _ in range(6)))
        return budget.held_bytes

    assert asyncio.run(crowd()) == 0


def test_waiting_for_memory_does_not_count_as_download_time(host: ImageHost) -> None:
    async def crowd() -> bytes:
        async with fetching() as fetcher:
            holders = Holders(fetcher, host.url("/ok/large"))
            tasks = [asyncio.create_task(holders.hold()) for _ in range(3)]
            await holders.until(BUDGET)
            late = asyncio.create_task(fetcher.fetch(host.url("/ok/small"), FetchOptions(200)))
            await asyncio.sleep(0.5)  # more than its time limit
            assert not late.done()
            holders.release.set()
            await asyncio.gather(*tasks)
            return await late

    assert asyncio.run(crowd()) == b"small"


def test_bodies_of_unknown_length_cost_what_they_are(host: ImageHost) -> None:
    """Each may have 64 MiB, and all together have 512."""

    async def many() -> list[int]:
        async with fetching(max_bytes=64 * 2**20, max_bytes_in_flight=512 * 2**20) as fetcher:
            holders = Holders(fetcher, host.url("/chunked/picture"))
            tasks = [asyncio.create_task(holders.hold()) for _ in range(64)]
            await holders.until(64 * PICTURE, 30)
            holders.release.set()
            return await asyncio.gather(*tasks)

    assert asyncio.run(many()) == [PICTURE] * 64


def test_no_memory_in_time_is_an_error_and_does_not_open_the_breaker(host: ImageHost) -> None:
    async def crowd() -> tuple[str, str, bytes]:
        async with fetching(breaker_failures=1) as fetcher:
            holders = Holders(fetcher, host.url("/ok/large"))
            tasks = [asyncio.create_task(holders.hold()) for _ in range(3)]
            await holders.until(BUDGET)
            with pytest.raises(MediaError) as late:
                await fetcher.fetch(host.url("/ok/small"), FetchOptions(within_s=0.3))
            with pytest.raises(MediaError) as uri:
                await fetcher.fetch(DATA_URI, FetchOptions(within_s=0.3))
            holders.release.set()
            await asyncio.gather(*tasks)
            assert len(await fetcher.fetch(DATA_URI, FetchOptions())) == LARGE
            return late.value.message, uri.value.message, await fetcher.fetch(host.url("/ok/small"), FetchOptions())

    message, message_of_uri, data = asyncio.run(crowd())
    assert "the time of its request was over while there was no room for" in message_of_uri
    assert "data:image/png" in message_of_uri
    assert len(message_of_uri) < 250
    assert "the time of its request was over while there was no room for 5 more bytes" in message
    assert "/ok/small" in message
    assert data == b"small"


def test_bytes_are_held_until_they_are_let_go_and_then_no_longer(host: ImageHost) -> None:
    async def in_turn() -> int:
        async with fetching() as fetcher:
            for path in ("/ok/large", "/chunked/large", "/lie-length", "/cut", "/status/404"):
                for _ in range(4):
                    try:
                        async with fetcher.holding(host.url(path), FetchOptions(200)) as data:
                            assert fetcher._budget.held_bytes == len(data)
                    except MediaError:
                        pass
            return fetcher._budget.held_bytes

    assert asyncio.run(in_turn()) == 0


def test_a_cancelled_download_releases_its_memory(host: ImageHost) -> None:
    async def cancel() -> bytes:
        async with fetching() as fetcher:
            holders = Holders(fetcher, host.url("/ok/large"))
            tasks = [asyncio.create_task(holders.hold()) for _ in range(8)]
            await holders.until(BUDGET)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return await fetcher.fetch(host.url("/ok/large"), FetchOptions())

    assert len(asyncio.run(cancel())) == LARGE


def test_first_come_first_served_but_holders_first() -> None:
    budget = MemoryBudget(10)
    order: list[str] = []
    reservations = {name: budget.reservation() for name in ("first", "holder", "big", "small", "gone")}

    def grow(name: str, nbytes: int) -> bool:
        return reservations[name].grow(nbytes, nbytes, lambda: order.append(name))

    assert grow("holder", 1)
    assert grow("first", 7)
    assert not grow("gone", 3)
    assert not grow("big", 6)
    assert not grow("small", 1)
    assert grow("holder", 5)  # beyond the limit, so that it can end
    reservations["gone"].release()
    reservations["first"].release()
    assert order == []
    reservations["holder"].release()
    assert order == ["big", "small"]
    assert budget.held_bytes == 7


def test_what_is_larger_than_the_budget_is_taken_alone(host: ImageHost) -> None:
    async def two() -> list[int]:
        async with fetching(max_bytes_in_flight=1000) as fetcher:
            urls = [host.url("/ok/large"), host.url("/chunked/large")]
            datas = await asyncio.gather(*(fetcher.fetch(url, FetchOptions()) for url in urls))
            return [len(data) for data in datas]

    assert asyncio.run(two()) == [LARGE, LARGE]
