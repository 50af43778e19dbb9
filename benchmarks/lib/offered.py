"""An offered load: requests that are sent at a fixed rate whatever the server does, each answer judged.

The load generator is a process of its own. Its CPU time is reported, since it shares the machine with the server.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
import msgpack
import numpy as np

from benchmarks.lib.target import Target

TIMEOUT_S = 60.0
TOLERANCE = 1e-4
"""Largest deviation of a component of a right vector: batches of another size round differently."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that can be sent again and again.

    Args:
        kind: its name in the results.
        target: where it is sent, and how its reply is read.
        body: of the request.
        vectors: the right answer, float32 (n, dimensions).
    """

    kind: str
    target: Target
    body: bytes
    vectors: np.ndarray


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; times in seconds since the start of its phase.

    Args:
        kind: of its `Ask`.
        items: that it asked for.
        due: when it was to be sent.
        done: when its answer was complete.
        verdict: "right", "refused" (a 503 with Retry-After and a detail), or what is wrong with the answer.
    """

    kind: str
    items: int
    due: float
    done: float
    verdict: str

    @property
    def latency(self) -> float:
        """Seconds from when it was due: time in a queue counts."""
        return self.done - self.due


@dataclass(frozen=True, slots=True)
class Phase:
    """A time with constant rates.

    Args:
        name: for reports.
        rates: requests per second of each kind.
        seconds: how long.
    """

    name: str
    rates: Mapping[str, float]
    seconds: float

    def arrivals(self) -> list[tuple[float, str]]:
        """When requests are due, in seconds from the start, and of which kind."""
        return sorted((i / rate, kind) for kind, rate in self.rates.items() for i in range(int(rate * self.seconds)))


def asked(kind: str, target: Target, items: Sequence[str]) -> Ask:
    """A request, with the vectors that the server answers now, while it is idle."""
    body = target.pack(items)
    reply = httpx.post(target.url, content=body, headers=dict(target.headers), timeout=TIMEOUT_S)
    return Ask(kind, target, body, target.unpack(reply.content))


def offer(asks: Sequence[Ask], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Offers the load of each phase without a pause between them, with the requests of each kind in turn.

    Returns:
        For each phase `name`, `started` (time.monotonic), `rates`, `seconds`, `outcomes`, and `cores`: CPU seconds of
        the load generator per second.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_phases, (asks, phases))


def closed(asks: Sequence[Ask], clients: int, seconds: float, beside: Mapping[str, float]) -> list[Outcome]:
    """What becomes of the requests of clients that each wait for an answer before they send the next request.

    Args:
        asks: sent in turn.
        clients: how many.
        seconds: how long.
        beside: requests per second of the kinds that are sent at a fixed rate meanwhile. The clients ask for all other
            kinds.

    Raises:
        ValueError: an answer was not right. The requests of `beside` may be refused.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_closed, (asks, clients, seconds, beside))


def _run_phases(asks: Sequence[Ask], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    return asyncio.run(_phases(asks, phases))


async def _phases(asks: Sequence[Ask], phases: Sequence[Phase]) -> list[dict[str, Any]]:
    turns = _turns(asks)
    results: list[dict[str, Any]] = []
    waiting = []
    async with session() as http:
        for phase in phases:
            started, cpu = time.monotonic(), _cpu_seconds()
            tasks = []
            for due, kind in phase.arrivals():
                await asyncio.sleep(max(0.0, started + due - time.monotonic()))
                tasks.append(asyncio.create_task(judged(http, next(turns[kind]), started, due)))
            await asyncio.sleep(max(0.0, started + phase.seconds - time.monotonic()))
            took = time.monotonic() - started
            cores = (_cpu_seconds() - cpu) / took
            about = {"name": phase.name, "started": started, "rates": dict(phase.rates)}
            results.append({**about, "seconds": took, "cores": cores})
            waiting.append(tasks)
        for result, tasks in zip(results, waiting, strict=True):
            result["outcomes"] = list(await asyncio.gather(*tasks))
    return results


def _run_closed(asks: Sequence[Ask], clients: int, seconds: float, beside: Mapping[str, float]) -> list[Outcome]:
    return asyncio.run(_closed(asks, clients, seconds, beside))


async def _closed(asks: Sequence[Ask], clients: int, seconds: float, beside: Mapping[str, float]) -> list[Outcome]:
    turns = _turns(asks)
    of_clients = itertools.cycle([ask for ask in asks if ask.kind not in beside])
    outcomes: list[Outcome] = []
    started = time.monotonic()

    async def one(http: aiohttp.ClientSession, ask: Ask, due: float) -> None:
        outcomes.append(await judged(http, ask, started, due))

    async def client(http: aiohttp.ClientSession) -> None:
        while True:
            await one(http, next(of_clients), time.monotonic() - started)

    async with session() as http, asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(http)) for _ in range(clients)]
        for due, kind in Phase("beside", beside, seconds).arrivals():
            await asyncio.sleep(max(0.0, started + due - time.monotonic()))
            group.create_task(one(http, next(turns[kind]), due))
        await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
        for task in tasks:
            task.cancel()
    wrong = {one.verdict for one in outcomes if one.kind not in beside or one.verdict != "refused"} - {"right"}
    if wrong:
        raise ValueError(f"answers at the sustainable rate are not right: {wrong}")
    return outcomes


def _turns(asks: Sequence[Ask]) -> dict[str, Iterator[Ask]]:
    return {kind: itertools.cycle([ask for ask in asks if ask.kind == kind]) for kind in {ask.kind for ask in asks}}


async def judged(http: aiohttp.ClientSession, ask: Ask, started: float, due: float) -> Outcome:
    """Sends a request and judges its answer. Times are in seconds since `started`."""
    try:
        async with http.post(ask.target.url, data=ask.body, headers=ask.target.headers) as response:
            verdict = _verdict(ask, response.status, response.headers, await response.read())
    except Exception as error:
        verdict = f"{type(error).__name__}: {error}"
    return Outcome(ask.kind, len(ask.vectors), due, time.monotonic() - started, verdict)


def _verdict(ask: Ask, status: int, headers: Mapping[str, str], reply: bytes) -> str:
    if status == 503:
        prompt = int(headers.get("Retry-After", 0)) >= 1 and "busy" in msgpack.unpackb(reply)["detail"]
        return "refused" if prompt else f"503 without Retry-After or detail: {reply[:200]!r}"
    if status != 200:
        return f"{status}: {reply[:200]!r}"
    rows = ask.target.unpack(reply)
    if rows.shape != ask.vectors.shape:
        return "another number of vectors"
    deviation = float(np.abs(rows - ask.vectors).max())
    return "right" if deviation <= TOLERANCE else f"a wrong vector, off by {deviation:.2g}"


def session() -> aiohttp.ClientSession:
    """A session without a limit of connections."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
