"""Collections of the last minute, made when somebody asks and shared by all who do."""

from __future__ import annotations

import asyncio

import pytest

from deployments.ingress.growth import Collection, Growth
from deployments.ingress.history import FRESH_S, LEAST_S, OLDEST_S, WINDOW_S, History, Shared
from tests.support.clock import run_without_waiting


class Source:
    """Counts how often it is asked; an answer takes a tenth of a second."""

    def __init__(self) -> None:
        self.asked = 0
        self.broken = False

    async def collect(self) -> Collection:
        self.asked += 1
        await asyncio.sleep(0.1)
        if self.broken:
            raise OSError("no answer")
        return Collection(asyncio.get_running_loop().time(), ())


def test_the_first_answer_measures_and_later_ones_look_back() -> None:
    async def play() -> None:
        source = Source()
        history = History(source.collect)
        first = await history.growth()
        assert first.seconds == pytest.approx(LEAST_S, abs=0.2)
        assert source.asked == 2
        spans = []
        for _ in range(40):
            await asyncio.sleep(2)
            spans.append((await history.growth()).seconds)
        assert source.asked == 42
        assert spans[:3] == sorted(spans[:3])
        assert all(WINDOW_S <= seconds <= WINDOW_S + 4.5 for seconds in spans[10:])
        await asyncio.sleep(OLDEST_S - 5)
        assert (await history.growth()).seconds <= OLDEST_S
        await asyncio.sleep(OLDEST_S + 5)
        assert (await history.growth()).seconds == pytest.approx(LEAST_S, abs=0.2)

    run_without_waiting(play())


def test_a_thousand_callers_cost_one_answer_a_second() -> None:
    async def play() -> None:
        source = Source()
        shared = Shared(source.collect)
        answers = await asyncio.gather(*(shared.get() for _ in range(1000)))
        assert len({id(one) for one in answers}) == 1
        for _ in range(100):
            await asyncio.sleep(0.1)
            await shared.get()
        assert source.asked <= 1 + 10 / FRESH_S

    run_without_waiting(play())


def test_a_caller_that_leaves_takes_nothing_from_the_others() -> None:
    async def play() -> None:
        source = Source()
        shared = Shared(source.collect)
        leaving, staying = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
        await asyncio.sleep(0.05)
        leaving.cancel()
        assert isinstance(await staying, Collection)
        assert source.asked == 1

    run_without_waiting(play())


def test_a_failure_is_not_kept() -> None:
    async def play() -> None:
        source = Source()
        shared = Shared(source.collect)
        source.broken = True
        with pytest.raises(OSError, match="no answer"):
            await shared.get()
        source.broken = False
        assert isinstance(await shared.get(), Collection)

    run_without_waiting(play())


def test_two_collections_of_one_moment_divide_by_nothing() -> None:
    assert Growth(Collection(1.0, ()), Collection(1.0, ())).rate("marqo_items") == 0
