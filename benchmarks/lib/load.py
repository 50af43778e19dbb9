"""Load on a server: closed loops for throughput, an open loop for latency.

A closed loop's client sends its next request when it has its answer. An open loop sends at a constant rate whatever
the answers do, and counts from the moment at which a request was due: waiting in line is part of the latency.
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
import numpy as np

from benchmarks.lib.cpu import CpuMeter
from benchmarks.lib.target import Target

BATCH = 32
"""Contents of one bulk request."""
WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Args:
    contents: answered within the window.
    seconds: the window.
    cpu: CPU seconds of the server within the window, by group.
    """

    contents: int
    seconds: float
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Contents per second."""
        return self.contents / self.seconds

    @property
    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds per content, by group."""
        return {group: 1000 * seconds / max(1, self.contents) for group, seconds in self.cpu.items()}


def closed_loop(
    target: Target, contents: Sequence[str], clients: int, seconds: float, meter: CpuMeter | None = None
) -> Throughput:
    """Throughput of `clients` that send requests of 32 contents each, after a warm-up of two seconds.

    Raises:
        ValueError: a reply was refused or lacks a vector.
    """
    return asyncio.run(_closed_loop(target, contents, clients, seconds, meter))


async def _closed_loop(
    target: Target, contents: Sequence[str], clients: int, seconds: float, meter: CpuMeter | None
) -> Throughput:
    bodies = _bodies(target, contents)
    replies: list[tuple[float, bytes]] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while True:
            reply = await post(session, target, next(bodies))
            replies.append((time.perf_counter(), reply))

    async with _session() as session, asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(session)) for _ in range(clients)]
        await asyncio.sleep(WARM_UP_S)
        started = time.perf_counter()
        if meter is not None:
            meter.lap()
        await asyncio.sleep(seconds)
        ended = time.perf_counter()
        cpu = {} if meter is None else meter.lap()
        for task in tasks:
            task.cancel()
    counts = [len(target.unpack(reply)) for at, reply in replies if started < at <= ended]
    return Throughput(sum(counts), ended - started, cpu)


@contextlib.contextmanager
def background(target: Target, contents: Sequence[str], clients: int) -> Iterator[Callable[[], int]]:
    """Closed-loop clients in a process of their own while the context lasts.

    Yields:
        Tells how many contents have been answered so far.
    """
    context = multiprocessing.get_context("spawn")
    answered = context.Value("q", 0)
    process = context.Process(target=_run_background, args=(target, contents, clients, answered), daemon=True)
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


def _run_background(target: Target, contents: Sequence[str], clients: int, answered: object) -> None:
    async def client(session: aiohttp.ClientSession, bodies: Iterator[bytes]) -> None:
        while True:
            rows = target.unpack(await post(session, target, next(bodies)))
            answered.value += len(rows)  # type: ignore[attr-defined]

    async def run() -> None:
        bodies = _bodies(target, contents)
        async with _session() as session:
            await asyncio.gather(*(client(session, bodies) for _ in range(clients)))

    asyncio.run(run())


def open_loop(target: Target, contents: Sequence[str], rate: float, seconds: float) -> list[float]:
    """Latencies in milliseconds of requests of one content each, `rate` of them per second for `seconds`."""
    return asyncio.run(_open_loop(target, contents, rate, seconds))


def one_after_the_other(target: Target, contents: Sequence[str], count: int) -> list[float]:
    """Latencies in milliseconds of `count` requests of one content each, by a single client: an idle server's."""
    return asyncio.run(_one_after_the_other(target, contents, count))


async def _one_after_the_other(target: Target, contents: Sequence[str], count: int) -> list[float]:
    latencies = []
    async with _session() as session:
        for i in range(-5, count):  # the first five only warm up
            body = target.pack([contents[i % len(contents)]])
            started = time.perf_counter()
            target.unpack(await post(session, target, body))
            if i >= 0:
                latencies.append(1000 * (time.perf_counter() - started))
    return latencies


async def _open_loop(target: Target, contents: Sequence[str], rate: float, seconds: float) -> list[float]:
    bodies = [target.pack([content]) for content in contents]
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
    """Lets others run until then. The event loop's timers are late by up to a millisecond, which would count as the
    server's; so the last two are spent asking for the time."""
    await asyncio.sleep(max(0.0, due - time.perf_counter() - 0.002))
    while time.perf_counter() < due:  # noqa: ASYNC110 - there is no event for a moment
        await asyncio.sleep(0)


class Conversation:
    """One client on one connection, for measurements that need to see its side too."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._http = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=300)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, contents: Sequence[Any] | np.ndarray) -> int:
        """Packs, sends, waits and unpacks.

        Returns:
            Bytes of request and reply, without headers.

        Raises:
            ValueError: the server refused, or vectors are missing.
        """
        body = self._target.pack(contents)
        self._http.request("POST", urlsplit(self._target.url).path, body, dict(self._target.headers))
        response = self._http.getresponse()
        reply = response.read()
        if response.status != 200:
            raise ValueError(f"{self._target.url} answered {response.status}: {reply[:500]!r}")
        if len(self._target.unpack(reply)) != len(contents):
            raise ValueError(f"{self._target.url} gave another number of vectors than was asked for")
        return len(body) + len(reply)


def once(target: Target, contents: Sequence[Any]) -> None:
    """One request, answered in full."""
    with Conversation(target) as conversation:
        conversation.ask(contents)


async def post(session: aiohttp.ClientSession, target: Target, body: bytes) -> bytes:
    """The reply's body.

    Raises:
        ValueError: the status is not 200.
    """
    async with session.post(target.url, data=body, headers=target.headers) as response:
        reply = await response.read()
        if response.status != 200:
            raise ValueError(f"{target.url} answered {response.status}: {reply[:500]!r}")
        return reply


def _bodies(target: Target, contents: Sequence[str]) -> Iterator[bytes]:
    """Requests of 32 contents, each starting where the last one ended, for ever."""
    around = itertools.cycle(contents)
    packed = [target.pack(list(itertools.islice(around, BATCH))) for _ in range(max(1, len(contents) // BATCH * 4))]
    return itertools.cycle(packed)


@contextlib.asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session
