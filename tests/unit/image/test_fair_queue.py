"""The order of calls: those that have had little CPU time go first, none waits for ever, cancelled ones delay none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from embedding.image.fair_queue import CLEANUP_EVERY, LEVEL_S, OLDEST_EVERY, Call, FairQueue, NoSlotError


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def queued(queue: FairQueue, calls: dict[str, Call]) -> tuple[list[str], list[asyncio.Task[None]]]:
    """Has each wait, in order. Returns the names as they get their turns, each of which lasts until it is released."""
    order: list[str] = []

    async def wait(name: str, call: Call) -> None:
        await queue.acquire(call)
        order.append(name)

    tasks = [asyncio.create_task(wait(name, call)) for name, call in calls.items()]
    await asyncio.sleep(0)
    return order, tasks


async def served(queue: FairQueue, count: int) -> None:
    for _ in range(count):
        queue.release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_calls_that_have_had_little_go_first() -> None:
    async def test() -> None:
        queue = FairQueue(1)
        await queue.acquire(Call())
        greedy, modest = Call(), Call()
        greedy.spent_s, modest.spent_s = 3 * LEVEL_S, LEVEL_S / 2
        order, _ = await queued(queue, {"greedy": greedy, "modest": modest, "new": Call()})
        await served(queue, 3)
        assert order == ["modest", "new", "greedy"]

    run(test)


def test_a_call_that_works_while_it_waits_falls_back() -> None:
    async def test() -> None:
        queue = FairQueue(1)
        await queue.acquire(Call())
        first, second = Call(), Call()
        order, _ = await queued(queue, {"first": first, "second": second})
        first.spent_s = LEVEL_S
        await served(queue, 2)
        assert order == ["second", "first"]

    run(test)


def test_the_oldest_is_not_overtaken_for_ever() -> None:
    async def test() -> None:
        queue = FairQueue(1)
        await queue.acquire(Call())
        greedy = Call()
        greedy.spent_s = 100.0
        order, _ = await queued(queue, {"greedy": greedy} | {f"new {i}": Call() for i in range(20)})
        await served(queue, OLDEST_EVERY)
        assert "greedy" in order

    run(test)


def test_who_leaves_takes_no_turn() -> None:
    async def test() -> None:
        queue = FairQueue(2)
        await queue.acquire(Call())
        await queue.acquire(Call())
        order, tasks = await queued(queue, {"gone": Call(), "late": Call(), "here": Call()})
        tasks[0].cancel()
        await asyncio.sleep(0)
        queue.release()
        # Its turn has come, and it has not noticed yet.
        tasks[1].cancel()
        await asyncio.wait(tasks, timeout=1, return_when=asyncio.ALL_COMPLETED)
        assert order == ["here"]

    run(test)


def test_no_wait_is_longer_than_the_patience() -> None:
    async def test() -> None:
        queue = FairQueue(1, max_wait_s=0.05)
        await queue.acquire(Call())
        with pytest.raises(NoSlotError):
            await queue.acquire(Call())
        queue.release()
        await queue.acquire(Call())

    run(test)


def test_what_waits_has_a_bound_of_bytes() -> None:
    async def test() -> None:
        queue = FairQueue(1, max_waiting_bytes=100)
        await queue.acquire(Call(), 1000)
        waiting = asyncio.create_task(queue.acquire(Call(), 80))
        await asyncio.sleep(0)
        with pytest.raises(NoSlotError):
            await queue.acquire(Call(), 30)
        queue.release()
        await waiting
        other = asyncio.create_task(queue.acquire(Call(), 30))
        await asyncio.sleep(0)
        queue.release()
        await other

    run(test)


def test_thousands_that_left_are_forgotten() -> None:
    async def test() -> None:
        queue = FairQueue(1)
        await queue.acquire(Call())
        for _ in range(3 * CLEANUP_EVERY):
            task = asyncio.create_task(queue.acquire(Call()))
            await asyncio.sleep(0)
            keeper = asyncio.create_task(queue.acquire(Call()))
            await asyncio.sleep(0)
            task.cancel()
            queue.release()
            await keeper
        assert len(queue._by_level) + len(queue._by_age) <= 4 * CLEANUP_EVERY

    run(test)
