"""Who is next: calls that have had little go first, nobody waits for ever, and whoever leaves holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from embedding.image.fair_queue import OLDEST_EVERY, STEP_S, TIDY_EVERY, Call, NoTurnError, Turns


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def queued(turns: Turns, calls: dict[str, Call]) -> tuple[list[str], list[asyncio.Task[None]]]:
    """Has each wait, in order. Returns the names as they get their turns, each of which lasts until it is released."""
    order: list[str] = []

    async def wait(name: str, call: Call) -> None:
        await turns.acquire(call)
        order.append(name)

    tasks = [asyncio.create_task(wait(name, call)) for name, call in calls.items()]
    await asyncio.sleep(0)
    return order, tasks


async def served(turns: Turns, count: int) -> None:
    for _ in range(count):
        turns.release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_calls_that_have_had_little_go_first() -> None:
    async def test() -> None:
        turns = Turns(1)
        await turns.acquire(Call())
        greedy, modest = Call(), Call()
        greedy.spent, modest.spent = 3 * STEP_S, STEP_S / 2
        order, _ = await queued(turns, {"greedy": greedy, "modest": modest, "new": Call()})
        await served(turns, 3)
        assert order == ["modest", "new", "greedy"]

    run(test)


def test_a_call_that_works_while_it_waits_falls_back() -> None:
    async def test() -> None:
        turns = Turns(1)
        await turns.acquire(Call())
        first, second = Call(), Call()
        order, _ = await queued(turns, {"first": first, "second": second})
        first.spent = STEP_S
        await served(turns, 2)
        assert order == ["second", "first"]

    run(test)


def test_the_oldest_is_not_overtaken_for_ever() -> None:
    async def test() -> None:
        turns = Turns(1)
        await turns.acquire(Call())
        greedy = Call()
        greedy.spent = 100.0
        order, _ = await queued(turns, {"greedy": greedy} | {f"new {i}": Call() for i in range(20)})
        await served(turns, OLDEST_EVERY)
        assert "greedy" in order

    run(test)


def test_who_leaves_takes_no_turn() -> None:
    async def test() -> None:
        turns = Turns(2)
        await turns.acquire(Call())
        await turns.acquire(Call())
        order, tasks = await queued(turns, {"gone": Call(), "late": Call(), "here": Call()})
        tasks[0].cancel()
        await asyncio.sleep(0)
        turns.release()
        # Its turn has come, and it has not noticed yet.
        tasks[1].cancel()
        await asyncio.wait(tasks, timeout=1, return_when=asyncio.ALL_COMPLETED)
        assert order == ["here"]

    run(test)


def test_no_wait_is_longer_than_the_patience() -> None:
    async def test() -> None:
        turns = Turns(1, patience_s=0.05)
        await turns.acquire(Call())
        with pytest.raises(NoTurnError):
            await turns.acquire(Call())
        turns.release()
        await turns.acquire(Call())

    run(test)


def test_what_waits_has_a_bound_of_bytes() -> None:
    async def test() -> None:
        turns = Turns(1, max_waiting_bytes=100)
        await turns.acquire(Call(), 1000)
        waiting = asyncio.create_task(turns.acquire(Call(), 80))
        await asyncio.sleep(0)
        with pytest.raises(NoTurnError):
            await turns.acquire(Call(), 30)
        turns.release()
        await waiting
        other = asyncio.create_task(turns.acquire(Call(), 30))
        await asyncio.sleep(0)
        turns.release()
        await other

    run(test)


def test_thousands_that_left_are_forgotten() -> None:
    async def test() -> None:
        turns = Turns(1)
        await turns.acquire(Call())
        for _ in range(3 * TIDY_EVERY):
            task = asyncio.create_task(turns.acquire(Call()))
            await asyncio.sleep(0)
            keeper = asyncio.create_task(turns.acquire(Call()))
            await asyncio.sleep(0)
            task.cancel()
            turns.release()
            await keeper
        assert len(turns._by_level) + len(turns._by_age) <= 4 * TIDY_EVERY

    run(test)
