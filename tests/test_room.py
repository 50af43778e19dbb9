"""Downloads share a budget of bytes, against a real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from image_host import ImageHost

from embedding.errors import MediaError
from embedding.fetch import Fetcher, FetchOptions, FetchSettings
from embedding.room import Room

LARGE = 2 * 2**20
ROOM = 3 * LARGE


@pytest.fixture(scope="module")
def host() -> Iterator[ImageHost]:
    with ImageHost({"large": bytes(LARGE), "small": b"small"}) as host:
        yield host


@asynccontextmanager
async def fetching(**settings: Any) -> AsyncIterator[Fetcher]:
    limits = {"allowed_networks": "127.0.0.0/8", "max_bytes": LARGE, "max_bytes_in_flight": ROOM}
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

    async def until(self, nbytes: int) -> None:
        async with asyncio.timeout(3):
            while self.holding < nbytes:
                self._changed.clear()
                await self._changed.wait()


@pytest.mark.parametrize("path", ["/ok/large", "/chunked/large"])
def test_no_more_than_the_budget_is_held(host: ImageHost, path: str) -> None:
    async def many() -> tuple[list[int], int]:
        async with fetching() as fetcher:
            holders = Holders(fetcher, host.url(path))
            tasks = [asyncio.create_task(holders.hold()) for _ in range(12)]
            # A body of unknown length takes room for its start first: fewer fit, but one always does.
            await holders.until(LARGE)
            holders.release.set()
            return await asyncio.gather(*tasks), holders.most

    sizes, most = asyncio.run(many())
    assert sizes == [LARGE] * 12
    assert most <= ROOM


def test_those_who_have_begun_never_wait_for_each_other() -> None:
    """Each holds a start, together all there is, and needs more."""

    async def crowd() -> int:
        room = Room(6)

        async def download() -> None:
            share = room.share()
            await share.grow(1)
            await asyncio.sleep(0)
            await share.grow(2)
            share.release()

        async with asyncio.timeout(3):
            await asyncio.gather(*(download() for _ in range(6)))
        return room.held

    assert asyncio.run(crowd()) == 0


def test_who_finds_no_room_in_time_gets_an_error_and_no_host_is_blamed(host: ImageHost) -> None:
    async def crowd() -> tuple[str, bytes]:
        async with fetching(breaker_failures=1) as fetcher:
            holders = Holders(fetcher, host.url("/ok/large"))
            tasks = [asyncio.create_task(holders.hold()) for _ in range(3)]
            await holders.until(ROOM)
            with pytest.raises(MediaError) as late:
                await fetcher.fetch(host.url("/ok/small"), FetchOptions(1200))
            holders.release.set()
            await asyncio.gather(*tasks)
            return late.value.message, await fetcher.fetch(host.url("/ok/small"), FetchOptions())

    message, data = asyncio.run(crowd())
    assert "no room for 5 more bytes within 1200 ms" in message
    assert "/ok/small" in message
    assert data == b"small"


def test_bytes_are_held_until_they_are_let_go_and_then_no_longer(host: ImageHost) -> None:
    async def in_turn() -> int:
        async with fetching() as fetcher:
            for path in ("/ok/large", "/chunked/large", "/lie-length", "/cut", "/status/404"):
                for _ in range(4):
                    try:
                        async with fetcher.holding(host.url(path), FetchOptions(200)) as data:
                            assert fetcher._room.held == len(data)
                    except MediaError:
                        pass
            return fetcher._room.held

    assert asyncio.run(in_turn()) == 0


def test_a_cancelled_download_gives_its_room_back(host: ImageHost) -> None:
    async def cancel() -> bytes:
        async with fetching() as fetcher:
            holders = Holders(fetcher, host.url("/ok/large"))
            tasks = [asyncio.create_task(holders.hold()) for _ in range(8)]
            await holders.until(ROOM)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return await fetcher.fetch(host.url("/ok/large"), FetchOptions())

    assert len(asyncio.run(cancel())) == LARGE


def test_first_come_first_served_but_holders_first() -> None:
    order: list[str] = []

    async def take(room: Room, name: str, nbytes: int, held: int = 0) -> None:
        await room.take(nbytes, held)
        order.append(name)

    async def queue() -> None:
        room = Room(10)
        await room.take(8)
        waiting = [asyncio.create_task(take(room, name, nbytes)) for name, nbytes in (("big", 6), ("small", 1))]
        waiting.append(asyncio.create_task(take(room, "holder", 5, held=1)))
        waiting.append(asyncio.create_task(take(room, "gone", 3)))
        await asyncio.sleep(0)
        waiting.pop().cancel()
        room.give_back(8)
        await asyncio.sleep(0)
        assert order == ["holder"]
        room.give_back(5)
        await asyncio.gather(*waiting)
        assert room.held == 7

    asyncio.run(queue())
    assert order == ["holder", "big", "small"]


def test_what_is_larger_than_the_budget_is_taken_alone(host: ImageHost) -> None:
    async def two() -> list[int]:
        async with fetching(max_bytes_in_flight=1000) as fetcher:
            urls = [host.url("/ok/large"), host.url("/chunked/large")]
            datas = await asyncio.gather(*(fetcher.fetch(url, FetchOptions()) for url in urls))
            return [len(data) for data in datas]

    assert asyncio.run(two()) == [LARGE, LARGE]
