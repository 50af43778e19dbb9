"""How much time is left to a call that does not know how long it has been on its way."""

from __future__ import annotations

import asyncio

import pytest

from deployments.preprocessor.deadlines import Deadlines
from tests.support.clock import run_without_waiting


def about(seconds: float) -> object:
    """The clock stands still only where nothing is done."""
    return pytest.approx(seconds, abs=0.5)


def test_calls_of_one_request_end_with_its_earliest() -> None:
    async def arrive() -> None:
        deadlines = Deadlines()
        assert deadlines.left_s("a", 5) == about(5)
        await asyncio.sleep(2)  # on its way
        assert deadlines.left_s("a", 5) == about(3)
        assert deadlines.left_s("a", 1) == about(1)
        await asyncio.sleep(2)
        assert deadlines.left_s("a", 5) == 0
        assert deadlines.left_s("b", 5) == about(5)

    run_without_waiting(arrive())


def test_who_has_no_end_says_nothing_about_others() -> None:
    async def arrive() -> None:
        deadlines = Deadlines()
        assert deadlines.left_s("a", None) is None
        assert deadlines.left_s("a", 1.0) == pytest.approx(1.0)
        assert deadlines.left_s("a", None) is None

    asyncio.run(arrive())


def test_the_oldest_of_many_requests_is_forgotten() -> None:
    async def arrive() -> None:
        deadlines = Deadlines()
        assert deadlines.left_s("first", 0.0) == 0
        for i in range(10_000):
            deadlines.left_s(str(i), 0.0)
        assert deadlines.left_s("9999", 1.0) == 0
        assert deadlines.left_s("first", 1.0) == pytest.approx(1.0)

    asyncio.run(arrive())
