"""The queue in front of a device. A gate stands for the device: it is busy until the test says otherwise."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from embedding.batching import DeviceQueue, Job
from embedding.errors import RequestError

WAIT_S = 10


class Device:
    """Runs one batch for every permit, and keeps a list of those that it ran. By its own clock each takes a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.batches: list[tuple[Any, list[Any]]] = []
        self.permits = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.running = 0

    def run(self, group: Any, payloads: Sequence[Any]) -> list[Any]:
        assert self.running == 0, "a device runs one batch at a time"
        self.running = 1
        try:
            self.batches.append((group, list(payloads)))
            self.started.release()
            assert self.permits.acquire(timeout=WAIT_S)
            if "poison" in payloads:
                raise ValueError("poison")
            return [f"{payload}!" for payload in payloads]
        finally:
            self.now += 1
            self.running = 0

    async def busy(self) -> None:
        """Waits until the next batch is on the device."""
        assert await asyncio.to_thread(self.started.acquire, timeout=WAIT_S)

    def finish(self, batches: int = 1) -> None:
        self.permits.release(batches)


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device()
    yield device
    device.finish(100)  # whatever a failed test left behind


def run(device: Device, test: Callable[[DeviceQueue], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            queue = DeviceQueue(
                device.run,
                executor,
                lane_of=lambda group: group[0],
                max_items={"i": 4, "t": 8},
                clock=lambda: device.now,
                **options,
            )
            try:
                await asyncio.wait_for(test(queue), WAIT_S)
            finally:
                device.finish(100)

    asyncio.run(main())


def job(payload: Any, group: str = "i", count: int = 1, urgent: bool = False) -> Job:
    return Job(group, payload, count, urgent)


def test_an_idle_device_starts_at_once(device: Device) -> None:
    """With a single job, and without any other: were there a timer or a minimum, the gate would never be reached."""

    async def test(queue: DeviceQueue) -> None:
        future = queue.put(job("a"))
        await device.busy()
        assert device.batches == [("i", ["a"])]
        assert not future.done()
        device.finish()
        assert await future == "a!"

    run(device, test)


def test_what_arrives_while_it_is_busy_merges_up_to_the_maximum(device: Device) -> None:
    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job(0))
        await device.busy()
        rest = [queue.put(job(i)) for i in range(1, 7)]
        device.finish(3)
        assert await asyncio.gather(first, *rest) == [f"{i}!" for i in range(7)]
        assert [batch for _, batch in device.batches] == [[0], [1, 2, 3, 4], [5, 6]]

    run(device, test)


def test_items_are_counted_and_not_jobs(device: Device) -> None:
    """A job that does not fit waits, a smaller one behind it may go."""

    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("first"))
        await device.busy()
        sizes = {"a": 3, "b": 2, "c": 1, "d": 1}
        rest = [queue.put(job(name, count=count)) for name, count in sizes.items()]
        device.finish(3)
        await asyncio.gather(first, *rest)
        assert [batch for _, batch in device.batches] == [["first"], ["a", "c"], ["b", "d"]]

    run(device, test)


def test_the_maximum_is_the_lanes_and_may_change(device: Device) -> None:
    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("first"))
        await device.busy()
        texts = [queue.put(job(i, "t")) for i in range(12)]
        queue.max_items = {**queue.max_items, "t": 10}
        device.finish(3)
        await asyncio.gather(first, *texts)
        assert [len(batch) for _, batch in device.batches] == [1, 10, 2]

    run(device, test)


def test_groups_stay_apart_and_in_order(device: Device) -> None:
    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("first"))
        await device.busy()
        arrivals = [("i1", "a"), ("t1", "b"), ("i1", "c"), ("i2", "d"), ("t1", "e")]
        rest = [queue.put(job(payload, group)) for group, payload in arrivals]
        device.finish(4)
        results = await asyncio.gather(first, *rest)
        assert results == ["first!", "a!", "b!", "c!", "d!", "e!"]
        assert device.batches[1:] == [("i1", ["a", "c"]), ("t1", ["b", "e"]), ("i2", ["d"])]

    run(device, test)


def test_urgent_work_goes_first(device: Device) -> None:
    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("first"))
        await device.busy()
        rest = [queue.put(job(i)) for i in range(8)] + [queue.put(job("search", "t", urgent=True))]
        device.finish(4)
        await asyncio.gather(first, *rest)
        assert [batch for _, batch in device.batches][:2] == [["first"], ["search"]]

    run(device, test)


def kinds(device: Device) -> list[str]:
    """What each batch was, of those that ran."""
    return [batch[0] for _, batch in device.batches]


@pytest.mark.parametrize(("max_wait_s", "searches_in_a_turn"), [(2.5, 3), (0.5, 1)])
def test_a_backlog_and_searches_take_turns(device: Device, max_wait_s: float, searches_in_a_turn: int) -> None:
    """All of the backlog has waited for longer than the maximum. Searches still go first, and the backlog has its turn
    when the maximum has passed since its last batch: even if each batch takes longer than that."""

    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("index"))
        await device.busy()
        backlog = [queue.put(job("index", count=4)) for _ in range(3)]
        device.now = 100.0
        searches = [queue.put(job("search", count=4, urgent=True)) for _ in range(8)]
        device.finish(12)
        await asyncio.gather(first, *backlog, *searches)
        turn = ["search"] * searches_in_a_turn + ["index"]
        assert kinds(device)[: 1 + 2 * len(turn)] == ["index", *turn, *turn]

    run(device, test, max_wait_s=max_wait_s)


def test_the_first_job_after_a_pause_waits_its_time(device: Device) -> None:
    """Time without any such job is not a wait."""

    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("search", urgent=True))
        await device.busy()
        device.now = 100.0
        rest = [queue.put(job("index"))] + [queue.put(job("search", count=4, urgent=True)) for _ in range(4)]
        device.finish(6)
        await asyncio.gather(first, *rest)
        assert kinds(device) == ["search", "search", "search", "index", "search", "search"]

    run(device, test, max_wait_s=2.5)


def test_a_failed_pass_is_gone_before_its_halves_run() -> None:
    """Or what it held of the device's memory would be missing for them."""

    class Held:
        pass

    held: list[weakref.ref[Held]] = []
    left_over: list[int] = []

    def run(_: Any, payloads: Sequence[Any]) -> Sequence[Any]:
        left_over.append(sum(reference() is not None for reference in held))
        tensors = Held()
        held.append(weakref.ref(tensors))
        if len(payloads) > 1:
            raise ValueError("too large")
        return payloads

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            queue = DeviceQueue(run, executor, lane_of=str, max_items={"i": 4})
            assert await asyncio.gather(*(queue.put(job(i)) for i in range(4))) == [0, 1, 2, 3]

    asyncio.run(main())
    assert left_over == [0] * 7


@pytest.mark.parametrize("position", range(4))
def test_a_poisonous_job_costs_only_itself(device: Device, position: int) -> None:
    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("first"))
        await device.busy()
        payloads = ["a", "b", "c"]
        payloads.insert(position, "poison")
        rest = [queue.put(job(payload)) for payload in payloads]
        device.finish(20)
        results = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(results.pop(position + 1), ValueError)
        assert results == ["first!", "a!", "b!", "c!"]
        # And the queue goes on.
        assert await queue.put(job("next")) == "next!"

    run(device, test)


def test_cancelled_jobs_never_reach_the_device(device: Device) -> None:
    async def test(queue: DeviceQueue) -> None:
        first = queue.put(job("first"))
        await device.busy()
        gone, stays, also_gone = (queue.put(job(name)) for name in ("gone", "stays", "also gone"))
        gone.cancel()
        also_gone.cancel()
        device.finish(2)
        assert await first == "first!"
        assert await stays == "stays!"
        assert [batch for _, batch in device.batches] == [["first"], ["stays"]]

    run(device, test)


def test_a_job_cancelled_on_the_device_harms_nobody(device: Device) -> None:
    async def test(queue: DeviceQueue) -> None:
        both = [queue.put(job("a")), queue.put(job("b"))]
        await device.busy()
        assert device.batches == [("i", ["a", "b"])]
        both[0].cancel()
        device.finish(2)
        assert await both[1] == "b!"
        assert await queue.put(job("next")) == "next!"

    run(device, test)


def test_an_idle_queue_starts_again(device: Device) -> None:
    async def test(queue: DeviceQueue) -> None:
        device.finish(3)
        for name in "abc":
            assert await queue.put(job(name)) == f"{name}!"
        assert [batch for _, batch in device.batches] == [["a"], ["b"], ["c"]]

    run(device, test)


class Panic(BaseException):
    """As pyo3 raises it for a panic of Rust's."""


PANICS = [Panic("called `Option::unwrap()` on a `None` value"), SystemExit(1), KeyboardInterrupt(), StopIteration()]
PANICS += [asyncio.CancelledError(), GeneratorExit()]


@pytest.mark.parametrize("panic", PANICS, ids=lambda panic: type(panic).__name__)
def test_a_library_that_panics_costs_only_its_own_job(panic: BaseException) -> None:
    """Neither the device's thread nor the event loop ends, and every future is settled."""

    def forward(group: Any, payloads: Sequence[Any]) -> list[Any]:
        if "poison" in payloads:
            raise panic
        return list(payloads)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            queue = DeviceQueue(forward, executor, lane_of=lambda group: group, max_items={"i": 8})
            jobs = [queue.put(Job("i", payload, 1)) for payload in ("a", "poison", "b")]
            async with asyncio.timeout(WAIT_S):
                first, failed, second = await asyncio.gather(*jobs, return_exceptions=True)
                assert (first, second) == ("a", "b")
                assert isinstance(failed, RequestError)
                assert type(panic).__name__ in failed.message
                assert await queue.put(Job("i", "next", 1)) == "next"

    asyncio.run(main())


def test_a_pass_with_too_few_results_leaves_nobody_waiting() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            queue = DeviceQueue(lambda group, payloads: [], executor, lane_of=lambda group: group, max_items={"i": 8})
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(RequestError, match="0 results came of 1 jobs"):
                    await queue.put(Job("i", "a", 1))

    asyncio.run(main())
