"""Of many contents some wait for long: what is ready is handed over together, and the rest later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from deployments.preprocessor.progress import PAUSE_S, Progress
from tests.support.clock import run_without_waiting


class Contents:
    """Some that arrive, and are worked on, when they are told to."""

    def __init__(self, count: int) -> None:
        self.progress = Progress[str](count)
        self.arrivals = [asyncio.Event() for _ in range(count)]
        self.ends = [asyncio.Event() for _ in range(count)]
        self.tasks = [asyncio.create_task(self.progress.follow(i, self._work(i))) for i in range(count)]
        self.parts = self.progress.parts()

    async def _work(self, place: int) -> str:
        await self.arrivals[place].wait()
        self.progress.arrived(place)
        await self.ends[place].wait()
        return f"content {place}"

    def finish(self, *places: int) -> None:
        for place in places:
            self.arrivals[place].set()
            self.ends[place].set()


def run(count: int, scene: Callable[[Contents], Awaitable[None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(10):
            await scene(Contents(count))

    run_without_waiting(play())


def test_what_is_ready_soon_comes_in_one_part() -> None:
    async def scene(contents: Contents) -> None:
        contents.finish(2, 0, 1)
        assert [part async for part in contents.parts] == [({i: f"content {i}" for i in range(3)}, 0)]

    run(3, scene)


def test_what_waits_for_long_holds_up_no_others() -> None:
    async def scene(contents: Contents) -> None:
        contents.finish(0, 2)
        assert await anext(contents.parts) == ({0: "content 0", 2: "content 2"}, 2)
        contents.finish(3)
        assert await anext(contents.parts) == ({3: "content 3"}, 1)
        contents.finish(1)
        assert [part async for part in contents.parts] == [({1: "content 1"}, 0)]

    run(4, scene)


def test_those_that_become_ready_at_the_same_time_come_together() -> None:
    async def scene(contents: Contents) -> None:
        assert await anext(contents.parts) == ({}, 3)
        following = asyncio.ensure_future(anext(contents.parts))
        for place in range(2):
            contents.finish(place)
            await asyncio.sleep(PAUSE_S / 3)
        assert await following == ({0: "content 0", 1: "content 1"}, 1)

    run(3, scene)


def test_nobody_is_told_twice_that_contents_wait() -> None:
    async def scene(contents: Contents) -> None:
        assert await anext(contents.parts) == ({}, 2)
        following = asyncio.ensure_future(anext(contents.parts))
        await asyncio.sleep(4 * PAUSE_S)
        assert not following.done()
        contents.finish(0)
        assert await following == ({0: "content 0"}, 1)

    run(2, scene)


def test_what_has_arrived_is_work_and_comes_when_all_is_done() -> None:
    """However long it takes: only waiting for others is told of before."""

    async def scene(contents: Contents) -> None:
        contents.arrivals[0].set()
        contents.finish(1)
        assert await anext(contents.parts) == ({1: "content 1"}, 1)
        contents.arrivals[2].set()
        assert await anext(contents.parts) == ({}, 0)
        following = asyncio.ensure_future(anext(contents.parts))
        contents.finish(0)
        await asyncio.sleep(4 * PAUSE_S)
        assert not following.done()
        contents.finish(2)
        assert await following == ({0: "content 0", 2: "content 2"}, 0)

    async def first_arrives(contents: Contents) -> None:
        contents.arrivals[0].set()
        await scene(contents)

    run(3, first_arrives)


def test_an_error_that_nobody_expected_is_raised() -> None:
    async def scene(_: Contents) -> None:
        async def fail() -> str:
            raise ZeroDivisionError

        broken = Progress[str](2)
        task = asyncio.create_task(broken.follow(0, fail()))
        with pytest.raises(ZeroDivisionError):
            await anext(broken.parts())
        await task

    run(0, scene)
