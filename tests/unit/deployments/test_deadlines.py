"""How much time is left to a call that does not know how long it has been on its way."""

from __future__ import annotations

import asyncio

import pytest

from deployments.preprocessor.deadlines import Deadlines


def test_calls_of_one_request_end_with_its_earliest() -> None:
    async def arrive() -> None:
        deadlines = Deadlines()
        assert deadlines.left_s("a", 0.05) == pytest.approx(0.05)
        await asyncio.sleep(0.02)  # on its way
        assert deadlines.left_s("a", 0.05) == pytest.approx(0.03, abs=0.015)
        assert deadlines.left_s("a", 0.01) == pytest.approx(0.01)
        await asyncio.sleep(0.02)
        assert deadlines.left_s("a", 0.05) == 0
        assert deadlines.left_s("b", 0.05) == pytest.approx(0.05)

    asyncio.run(arrive())


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
