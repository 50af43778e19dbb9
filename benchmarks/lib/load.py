"""Load on a server: closed loops for throughput, an open loop for latency.

A client of a closed loop sends its next request when it has its answer. An open loop sends at a constant rate whatever
the server does, and counts from the moment at which a request was due: time in a queue is part of the latency.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from benchmarks.lib.cpu import CpuMeter
from benchmarks.lib.target import Items, Rows, Target

BATCH = 32
"""Items of one bulk request."""
WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was answered within a window of time.

    Args:
        items: answered within the window; of a request that was there for a part of its time, that part.
        seconds: length of the window.
        cpu: CPU seconds of the server within the window, by group of processes.
    """

    items: float
    seconds: float
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.seconds

    @property
    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds per item, by group."""
        return {group: 1000 * seconds / max(1.0, self.items) for group, seconds in self.cpu.items()}


def closed_loop(
    target: Target, items: Sequence[str], clients: int, seconds: float, meter: CpuMeter | None = None
) -> Throughput:
    """Throughput of `clients` that send requests of 32 items each, after a warm-up of two seconds.

    Raises:
        ValueError: a request was refused, or a vector is missing in a reply.
    """
    return asyncio.run(_closed_loop(target, items, clients, seconds, meter))


async def _closed_loop(
    target: Target, items: Sequence[str], clients: int, seconds: float, meter: CpuMeter | None
) -> Throughput:
    bodies = _bodies(target, items)
    replies: list[tuple[float, float, bytes]] = []
    over = False

    async def client(session: aiohttp.ClientSession) -> None:
        while not over:
            sent = time.perf_counter()
            reply = await post(session, target, next(bodies))
            replies.append((sent, time.perf_counter(), reply))

    async with _session() as session, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(session))
        await asyncio.sleep(WARM_UP_S)
        started = time.perf_counter()
        if meter is not None:
            meter.lap()
        await asyncio.sleep(seconds)
        ended = time.perf_counter()
        cpu = {} if meter is None else meter.lap()
        over = True
    counts = (len(target.unpack(reply)) * _share(sent, at, started, ended) for sent, at, reply in replies)
    return Throughput(sum(counts), ended - started, cpu)


def _share(sent: float, answered: float, started: float, ended: float) -> float:
    """The part of a request's time that lies within the window. A request may take seconds: to count whole ones would
    make a throughput jump by several per cent."""
    return max(0.0, min(answered, ended) - max(sent, started)) / (answered - sent)


@contextlib.contextmanager
def background(target: Target, items: Sequence[str], clients: int) -> Iterator[Callable[[], int]]:
    """Closed-loop clients in a process of their own while the context lasts.

    Yields:
        A function that returns how many items have been answered so far.
    """
    context = multiprocessing.get_context("spawn")
    answered = context.Value("q", 0)
    process = context.Process(target=_run_background, args=(target, items, clients, answered), daemon=True)
    process.start()
    try:
        while answered.value == 0 and process.is_alive():
            time.sleep(0.05)
        time.sleep(WARM_UP_S)
        yield lambda: answered.value
        if not process.is_alive():
            raise RuntimeError("the background clients have failed")
    finally:
        process.terminate()
        process.join()


def _run_background(target: Target, items: Sequence[str], clients: int, answered: Any) -> None:
    async def client(session: aiohttp.ClientSession, bodies: Iterator[bytes]) -> None:
        while True:
            rows = target.unpack(await post(session, target, next(bodies)))
            answered.value += len(rows)

    async def run() -> None:
        bodies = _bodies(target, items)
        async with _session() as session:
            await asyncio.gather(*(client(session, bodies) for _ in range(clients)))

    asyncio.run(run())


def open_loop(target: Target, items: Sequence[str], rate: float, seconds: float) -> list[float]:
    """Latencies in milliseconds of requests of one item each, `rate` of them per second for `seconds`."""
    return asyncio.run(_open_loop(target, items, rate, seconds))


def one_after_the_other(target: Target, items: Sequence[str], count: int) -> list[float]:
    """Latencies in milliseconds of `count` requests of one item each, of a single client on an idle server."""
    return asyncio.run(_one_after_the_other(target, items, count))


async def _one_after_the_other(target: Target, items: Sequence[str], count: int) -> list[float]:
    latencies = []
    async with _session() as session:
        for i in range(-5, count):  # the first five only warm up
            body = target.pack([items[i % len(items)]])
            started = time.perf_counter()
            target.unpack(await post(session, target, body))
            if i >= 0:
                latencies.append(1000 * (time.perf_counter() - started))
    return latencies


async def _open_loop(target: Target, items: Sequence[str], rate: float, seconds: float) -> list[float]:
    bodies = [target.pack([item]) for item in items]
    async with _session() as session:

        async def one(body: bytes, due: float) -> float:
            target.unpack(await post(session, target, body))
            return 1000 * (time.perf_counter() - due)

        tasks = []
        started = time.perf_counter()
        for i in range(int(rate * seconds)):
            due = started + i / rate
            await _until(due)
            tasks.append(asyncio.create_task(one(bodies[i % len(bodies)], due)))
        return list(await asyncio.gather(*tasks))


async def _until(due: float) -> None:
    """Waits, and lets other tasks run. The event loop's timers are late by up to a millisecond, which would count as
    latency of the server: so the last two milliseconds are spent asking for the time."""
    await asyncio.sleep(max(0.0, due - time.perf_counter() - 0.002))
    while time.perf_counter() < due:  # noqa: ASYNC110 - there is no event for a moment
        await asyncio.sleep(0)


class Conversation:
    """One client on one connection, for measurements that need its CPU time and bytes too."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._http = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=300)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, items: Items) -> int:
        """Packs, sends, waits and unpacks.

        Returns:
            Bytes of request and reply, without headers.

        Raises:
            ValueError: the server refused the request, or a vector is missing.
        """
        return self.exchange(items)[1]

    def exchange(self, items: Items) -> tuple[Rows, int]:
        """As `ask`, and returns the vectors too: float32 (n, dimensions)."""
        body = self._target.pack(items)
        self._http.request("POST", urlsplit(self._target.url).path, body, dict(self._target.headers))
        response = self._http.getresponse()
        reply = response.read()
        if response.status != 200:
            raise ValueError(f"{self._target.url} answered {response.status}: {reply[:500]!r}")
        rows = self._target.unpack(reply)
        if len(rows) != len(items):
            raise ValueError(f"{self._target.url} gave another number of vectors than was asked for")
        return rows, len(body) + len(reply)


def once(target: Target, items: Items) -> Rows:
    """Sends one request and waits for the answer: float32 (n, dimensions).

    Raises:
        ValueError: as `Conversation.ask`.
    """
    with Conversation(target) as conversation:
        return conversation.exchange(items)[0]


async def post(session: aiohttp.ClientSession, target: Target, body: bytes) -> bytes:
    """Sends a request and returns the reply's body.

    Raises:
        ValueError: the status is not 200.
    """
    async with session.post(target.url, data=body, headers=target.headers) as response:
        reply = await response.read()
        if response.status != 200:
            raise ValueError(f"{target.url} answered {response.status}: {reply[:500]!r}")
        return reply


def _bodies(target: Target, items: Sequence[str]) -> Iterator[bytes]:
    """An endless series of requests of 32 items, each of which starts after the last item of the one before."""
    around = itertools.cycle(items)
    packed = [target.pack(list(itertools.islice(around, BATCH))) for _ in range(max(1, len(items) // BATCH * 4))]
    return itertools.cycle(packed)


@contextlib.asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session
