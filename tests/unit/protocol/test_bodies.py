"""Bodies that arrive slowly, or are never complete: no other request waits for them, and they are given up."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.ingress import bodies
from deployments.ingress.admission import Admission
from deployments.ingress.bodies import Arrivals
from embedding.errors import Fault, RequestError
from tests.support.clock import run_without_waiting
from tests.support.waiting import until_async

KIBIBYTE = 2**10
MOST = 1024 * KIBIBYTE


class Sender:
    """What a server hands over of one client's body."""

    def __init__(self, *parts: int, ends: bool = False) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for i, count in enumerate(parts):
            self.send(count, more=not ends or i + 1 < len(parts))

    def send(self, count: int, more: bool = True) -> None:
        self.messages.put_nowait({"type": "http.request", "body": bytes(count), "more_body": more})

    async def receive(self) -> dict[str, Any]:
        return await self.messages.get()


class Door:
    """An ingress's way to read bodies: a megabyte of them in all, half a megabyte of those that are not complete."""

    def __init__(self, least_bytes_per_s: float = 1.0, grace_s: float = 60.0) -> None:
        self.admission = Admission(MOST, "bytes of requests", MOST // 8)
        self.arrivals = Arrivals(MOST, MOST // 2, least_bytes_per_s, grace_s)

    async def read(self, sender: Sender) -> int:
        with self.admission.share() as share:
            data = await self.arrivals.read(sender.receive, share)
            assert share.held == len(data)
            return len(data)

    def reading(self, sender: Sender) -> "asyncio.Task[int]":
        return asyncio.create_task(self.read(sender))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within_time() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(within_time())


async def body_refusal(task: "asyncio.Task[int]") -> RequestError:
    with pytest.raises(RequestError) as refused:
        await task
    return refused.value


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are measured by the clock of the event loop, which `run_without_waiting` moves on."""
    monkeypatch.setattr(bodies, "time", SimpleNamespace(monotonic=now))


def test_a_body_is_read_in_parts_and_counted() -> None:
    async def scenario() -> None:
        door = Door()
        sender = Sender(1000, 2000)
        task = door.reading(sender)
        await until_async(lambda: door.admission.held == 3000)
        sender.send(500, more=False)
        assert await task == 3500
        assert door.admission.held == 0

    run(scenario)


def test_two_large_bodies_that_lack_their_last_byte_keep_nobody_out() -> None:
    """Neither a search nor a body of some hundred KiB that comes in parts."""

    async def scenario() -> None:
        door = Door()
        first = door.reading(Sender(500 * KIBIBYTE))
        await until_async(lambda: door.admission.held == 500 * KIBIBYTE)
        second = door.reading(Sender(20 * KIBIBYTE, 500 * KIBIBYTE))
        # One gives way to the other, whichever is larger; both together never hold more than half.
        await until_async(lambda: door.admission.held in (0, 500 * KIBIBYTE, 20 * KIBIBYTE))
        for _ in range(20):
            assert await door.read(Sender(300, ends=True)) == 300
            assert await door.read(Sender(*[64 * KIBIBYTE] * 5, ends=True)) == 320 * KIBIBYTE
        assert door.admission.held <= MOST // 2
        for task in (first, second):
            task.cancel()

    run(scenario)


def test_the_largest_gives_way_and_is_told() -> None:
    async def scenario() -> None:
        door = Door()
        large, small = Sender(400 * KIBIBYTE), Sender(100 * KIBIBYTE)
        evicted, staying = door.reading(large), door.reading(small)
        await until_async(lambda: door.admission.held == 500 * KIBIBYTE)
        small.send(100 * KIBIBYTE)
        await until_async(lambda: door.admission.held == 200 * KIBIBYTE)
        large.send(1)
        error = await body_refusal(evicted)
        assert error.fault is Fault.OVERLOADED
        assert "not complete" in error.message
        small.send(1, more=False)
        assert await staying == 200 * KIBIBYTE + 1

    run(scenario)


def test_a_body_that_alone_is_larger_than_half_is_taken() -> None:
    async def scenario() -> None:
        assert await Door().read(Sender(400 * KIBIBYTE, 400 * KIBIBYTE, 1, ends=True)) == 800 * KIBIBYTE + 1

    run(scenario)


@pytest.mark.parametrize("parts", [[], [10], [300 * KIBIBYTE]], ids=["none", "few", "many"])
def test_a_stalled_body_is_given_up_however_much_has_come(own_clock: None, parts: list[int]) -> None:
    async def scenario() -> None:
        door = Door(least_bytes_per_s=1000, grace_s=10)
        started = now()
        error = await body_refusal(door.reading(Sender(*parts)))
        assert error.fault is Fault.TOO_SLOW
        assert "too slowly" in error.message
        # What came at first counts in its own period only.
        assert now() - started < 21
        assert door.admission.held == 0

    run_without_waiting(scenario())


def test_a_body_that_drips_is_given_up_and_one_that_keeps_the_pace_is_not(own_clock: None) -> None:
    async def scenario() -> None:
        door = Door(least_bytes_per_s=1000, grace_s=10)
        dripping, steady = Sender(), Sender()
        slow, good = door.reading(dripping), door.reading(steady)
        for _ in range(60):
            dripping.send(1)
            steady.send(1200)
            await asyncio.sleep(1)
        steady.send(1, more=False)
        assert (await body_refusal(slow)).fault is Fault.TOO_SLOW
        assert await good == 72_001

    run_without_waiting(scenario())


def test_a_body_beyond_the_limit_and_a_client_that_hangs_up() -> None:
    async def scenario() -> None:
        door = Door()
        error = await body_refusal(door.reading(Sender(MOST, 1)))
        assert error.fault is Fault.TOO_LARGE
        gone = Sender(10)
        gone.messages.put_nowait({"type": "http.disconnect"})
        assert (await body_refusal(door.reading(gone))).fault is Fault.MALFORMED
        assert door.admission.held == 0

    run(scenario)


def test_small_requests_are_admitted_beside_large_ones() -> None:
    admission = Admission(64_000, "bytes", spare=12_800)
    with admission.share() as one, admission.share() as two, admission.share() as small:
        one.add(40_000)
        with pytest.raises(RequestError):
            two.add(20_000)
        small.add(200)
        with pytest.raises(RequestError):
            small.add(20_000)
    assert admission.held == 0
