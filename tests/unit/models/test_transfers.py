"""Slots for downloads: kinds of sources, sites and files do not delay each other, and no request waits without end."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from embedding.errors import Fault, RequestError
from embedding.models.files.transfers import Origin, Stopped, Transfers, check_wanted
from tests.support.waiting import until_async

WAIT_S = 10


class Servers:
    """Transfers that take until the test says otherwise, and look now and then whether they are wanted."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.looks: Counter[str] = Counter()
        """How often each found that it was wanted."""

    def trickle(self, name: str) -> Callable[[], str]:
        def call() -> str:
            self.started.append(name)
            while not self.over.wait(0.005):
                try:
                    check_wanted()
                except Stopped:
                    self.stopped.append(name)
                    raise
                self.looks[name] += 1
            return name

        return call

    async def look_on(self, *names: str) -> None:
        """Waits until each of these has found twice more that it is wanted: it has begun to look only then."""
        enough = {name: self.looks[name] + 2 for name in names}
        await until_async(lambda: all(self.looks[name] >= count for name, count in enough.items()))


def run(test: Callable[[Servers, Transfers], Awaitable[None]]) -> None:
    async def main() -> None:
        servers = Servers()
        try:
            async with asyncio.timeout(WAIT_S):
                await test(servers, Transfers(most=4, per_site=2, waiting=6, waiting_per_site=3))
        finally:
            servers.over.set()

    asyncio.run(main())


def start(servers: Servers, transfers: Transfers, name: str, origin: Origin) -> asyncio.Task[str]:
    return asyncio.create_task(transfers.run(origin, servers.trickle(name)))


def url(site: int, file: int) -> Origin:
    return Origin("url", f"site{site}", f"{site}/{file}")


def test_kinds_have_places_of_their_own() -> None:
    async def test(servers: Servers, transfers: Transfers) -> None:
        slow = [start(servers, transfers, f"{i}", url(i, 0)) for i in range(10)]
        await until_async(lambda: len(servers.started) == 4)
        for kind in ("hub", "registry", "s3", "path"):
            assert await transfers.run(Origin(kind, "somebody", "x"), lambda: "there") == "there"
        assert not any(task.done() for task in slow)

    run(test)


def test_a_site_has_its_share_and_its_line() -> None:
    async def test(servers: Servers, transfers: Transfers) -> None:
        slow = [start(servers, transfers, f"{i}", url(0, i)) for i in range(5)]
        await until_async(lambda: len(servers.started) == 2)
        with pytest.raises(RequestError, match="3 downloads of weights from the same source wait") as caught:
            await transfers.run(url(0, 5), lambda: "never")
        assert caught.value.fault is Fault.OVERLOADED
        assert await transfers.run(url(1, 0), lambda: "there") == "there"
        assert len(servers.started) == 2
        servers.over.set()
        assert await asyncio.gather(*slow) == ["0", "1", "2", "3", "4"]

    run(test)


def test_a_line_has_an_end() -> None:
    async def test(servers: Servers, transfers: Transfers) -> None:
        slow = [start(servers, transfers, f"{i}", url(i, 0)) for i in range(10)]
        await until_async(lambda: len(servers.started) == 4)
        with pytest.raises(RequestError, match="try again later") as caught:
            await transfers.run(url(10, 0), lambda: "never")
        assert caught.value.fault is Fault.OVERLOADED
        for task in slow[4:]:
            task.cancel()
        await asyncio.wait(slow[4:])
        queued = start(servers, transfers, "next", url(11, 0))
        await asyncio.sleep(0)
        assert not queued.done()  # a refusal would be there at once
        servers.over.set()
        assert await queued == "next"

    run(test)


def test_a_file_is_fetched_once_at_a_time() -> None:
    """A second request for it waits without a thread, and takes no slot from others of the site."""

    async def test(servers: Servers, transfers: Transfers) -> None:
        same = [start(servers, transfers, f"same{i}", url(0, 0)) for i in range(3)]
        other = start(servers, transfers, "other", url(0, 1))
        # The site has two slots: had another of the same file taken one, this one would wait.
        await until_async(lambda: len(servers.started) == 2)
        assert sorted(servers.started) == ["other", "same0"]
        servers.over.set()
        assert await asyncio.gather(*same, other) == ["same0", "same1", "same2", "other"]

    run(test)


def test_what_nobody_waits_for_goes_on_until_its_place_is_needed() -> None:
    async def test(servers: Servers, transfers: Transfers) -> None:
        slow = [start(servers, transfers, f"{i}", url(i, 0)) for i in range(4)]
        await until_async(lambda: len(servers.started) == 4)
        for task in slow[:2]:
            task.cancel()
        await asyncio.wait(slow[:2])
        await servers.look_on("0", "1")
        assert servers.stopped == []
        newcomer = start(servers, transfers, "new", url(9, 0))
        await until_async(lambda: "new" in servers.started)
        assert servers.stopped == ["0"]
        # Also for one that waits already, when a request is cancelled.
        another = start(servers, transfers, "another", url(8, 0))
        await until_async(lambda: "another" in servers.started)
        assert servers.stopped == ["0", "1"]
        third = start(servers, transfers, "third", url(7, 0))
        await servers.look_on("2", "3", "new", "another")
        assert "third" not in servers.started
        slow[2].cancel()
        await until_async(lambda: "third" in servers.started)
        assert servers.stopped == ["0", "1", "2"]
        servers.over.set()
        assert await asyncio.gather(*[newcomer, another, third, slow[3]]) == ["new", "another", "third", "3"]

    run(test)


def test_who_asks_again_finds_it_going_on() -> None:
    async def test(servers: Servers, transfers: Transfers) -> None:
        slow = [start(servers, transfers, f"{i}", url(i, 0)) for i in range(4)]
        await until_async(lambda: len(servers.started) == 4)
        slow[0].cancel()
        await asyncio.wait(slow[:1])
        again = start(servers, transfers, "again", url(0, 0))
        newcomer = start(servers, transfers, "new", url(9, 0))
        await servers.look_on("0", "1", "2", "3")
        assert servers.stopped == []
        servers.over.set()
        assert await asyncio.gather(*[again, newcomer]) == ["again", "new"]

    run(test)


def test_a_panic_frees_its_place() -> None:
    def panic() -> None:
        raise SystemExit(1)

    async def test(servers: Servers, transfers: Transfers) -> None:
        for i in range(10):
            with pytest.raises(RequestError, match="SystemExit"):
                await transfers.run(url(0, i), panic)
        assert await transfers.run(url(0, 0), lambda: "there") == "there"

    run(test)
