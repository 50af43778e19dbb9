"""Latency of searches and of pictures from a healthy host while another client's pictures come from slow hosts.

One client sends a request for hundreds of URLs of a slow host, again and again. Others meanwhile search for a text,
search for a picture as a data URI, and index a picture from a healthy host, at a constant rate. All of it goes over
HTTP and each answer is checked. Waiting for a host needs no CPU: none of the others should take much longer than they
do without that client.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgpack

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.load import once
from benchmarks.lib.offered import Ask, Outcome, Phase, asked, offer
from benchmarks.lib.percentiles import percentile
from benchmarks.lib.queries import queries
from benchmarks.lib.server import Shape, described, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.traffic import HEADERS, request
from benchmarks.lib.web import misbehaving

RATES = {"text search": 8.0, "data URI search": 4.0, "picture": 4.0}
"""Requests per second of each kind."""
SECONDS = 12.0
AIM_MS = 500
PAUSE_S = 0.2
"""Seconds from an answer to the slow client's next request."""
THREADS = 20
"""`downloadThreadCount` of the slow client's requests."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the slow client asks for, one request after the other.

    Args:
        name: for tables.
        urls: how many in one request; 0: there is no slow client.
        path: of each URL on the slow host; `{}` is a number.
        timeout_ms: `downloadTimeoutMs`.
        search: whether the request is marked as a search.
    """

    name: str
    urls: int = 0
    path: str = ""
    timeout_ms: int = 3000
    search: bool = False


TARPIT = "/drip?picture={}"
"""A host that answers, then sends one byte per second without an end."""
LOADS = (
    Load("nothing"),
    Load("640 URLs of a 2.5 s host", 640, "/ok/{name}?delay=2.5&picture={}"),
    Load("1,280 URLs of a 20 s host, limit 60 s", 1280, "/ok/{name}?delay=20&picture={}", 60_000),
    Load("2,000 tarpit URLs, limit 60 s", 2000, TARPIT, 60_000),
    Load("512 tarpit URLs as a search, limit 60 s", 512, TARPIT, 60_000, search=True),
)


def measure(quick: bool) -> Result:
    """For each load and kind of request: milliseconds of the right answers, and how many others there were."""
    checkpoint, paths = models.small_clip(), pictures.normal()
    folder, seconds = paths[0].parent, SECONDS / 2 if quick else SECONDS
    measured = []
    with misbehaving(folder) as healthy, graph() as server:
        urls = [f"http://127.0.0.1:{healthy}/ok/{path.name}" for path in paths[:16]]
        once(marqo(server.url, checkpoint.properties), urls)
        asks = _asks(server.url, checkpoint.properties, urls)
        for load in LOADS:
            with misbehaving(folder) as slow:  # a new host, of which the server knows nothing from the last load
                body = _body(load, f"http://127.0.0.1:{slow}", paths[0].name, checkpoint.properties)
                with _beside(f"{server.url}/vectorise", body) as answers:
                    outcomes = offer(asks, [Phase(load.name, RATES, seconds)])[0]["outcomes"]
                _wait_for_calm(asks)
            measured.append({"load": load.name, "kinds": _by_kind(outcomes), "answers": answers})
    return {"shape": described(Shape()), "rates": RATES, "seconds": seconds, "measured": measured}


def rows(result: Mapping[str, Any]) -> Table:
    """Latencies and failures of each kind of request beside each load."""
    table = [["beside", "asked for", "requests", "p50 ms", "p95 ms", "worst ms", "refused or failed"]]
    for one in result["measured"]:
        for kind, figures in one["kinds"].items():
            took = [f"{value:.0f}" for value in _milliseconds(figures["ms"])] or ["–"] * 3
            count = len(figures["ms"]) + len(figures["others"])
            table.append([one["load"], kind, str(count), *took, str(len(figures["others"]))])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """The worst of all loads and kinds, and how many requests failed in all."""
    figures = [kind for one in result["measured"] for kind in one["kinds"].values()]
    return {
        "waiting_worst_p95_ms": [max(_milliseconds(one["ms"])[1] for one in figures if one["ms"])],
        "waiting_refused_or_failed": [float(sum(len(one["others"]) for one in figures))],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """The 95th percentile and the largest latency of each kind beside each load."""
    for shift, kind in zip((-0.2, 0.0, 0.2), RATES, strict=True):
        at = [i + shift for i, one in enumerate(result["measured"]) if one["kinds"][kind]["ms"]]
        took = [_milliseconds(one["kinds"][kind]["ms"]) for one in result["measured"] if one["kinds"][kind]["ms"]]
        (line,) = axes.plot(at, [p95 for _, p95, _ in took], "o", label=f"{kind}: p95, and worst")
        axes.vlines(at, [p95 for _, p95, _ in took], [worst for *_, worst in took], color=line.get_color())
    axes.axhline(AIM_MS, color="grey", linestyle=":")
    names = [one["load"].replace(", limit", "\nlimit").replace(" URLs ", " URLs\n") for one in result["measured"]]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3, which="both", axis="y")
    axes.figure.legend(loc="outside lower center", ncols=3, fontsize="small")


def _asks(url: str, properties: Mapping[str, Any], urls: Sequence[str]) -> list[Ask]:
    """Of each kind, with the vectors that the idle server gives."""
    texts = marqo(url, properties, "language", search=True)
    searches, bulk = marqo(url, properties, search=True), marqo(url, properties)
    small = pictures.file_bytes(pictures.normal()[:16])
    uris = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in small]
    targets = {"text search": texts, "data URI search": searches, "picture": bulk}
    items = {"text search": queries(16), "data URI search": uris, "picture": urls}
    return [asked(kind, target, [item]) for kind, target in targets.items() for item in items[kind]]


def _body(load: Load, host: str, name: str, properties: Mapping[str, Any]) -> bytes:
    """The load's request; empty if there is no load."""
    if not load.urls:
        return b""
    paths = [load.path.replace("{name}", name).replace("{}", str(i)) for i in range(load.urls)]
    asked_for = request([host + path for path in paths], "image", properties["name"], properties)
    asked_for["preprocessingConfig"] |= {"downloadTimeoutMs": load.timeout_ms, "downloadThreadCount": THREADS}
    body: bytes = msgpack.packb(
        asked_for | {"useInferenceCache": load.search, "returnIndividualError": not load.search}
    )
    return body


@contextlib.contextmanager
def _beside(url: str, body: bytes) -> Iterator[list[int]]:
    """One client that sends its request again and again from a thread, until it hangs up at the end of the context.
    Yields the statuses of its answers so far."""
    answers: list[int] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(_ask_again_and_again(url, body, answers))
    thread = threading.Thread(target=_run_until_cancelled, args=(loop, task))
    thread.start()
    try:
        yield answers
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def _run_until_cancelled(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)


async def _ask_again_and_again(url: str, body: bytes, answers: list[int]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http:
        while body:
            async with http.post(url, data=body, headers=HEADERS) as response:
                await response.read()
                answers.append(response.status)
            await asyncio.sleep(PAUSE_S)


def _wait_for_calm(asks: Sequence[Ask]) -> None:
    """Waits until every answer is right and quick: the server has nothing left to do of the last load.

    Raises:
        TimeoutError: that does not happen.
    """
    rates = dict.fromkeys(RATES, 2.0)
    for _ in range(30):
        outcomes = offer(asks, [Phase("calm", rates, 1.0)])[0]["outcomes"]
        if all(one.verdict == "right" and 1000 * one.latency < AIM_MS for one in outcomes):
            return
    raise TimeoutError("the server does not recover from the last load")


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Of each kind the milliseconds of the right answers (`ms`), and the verdicts of all `others`."""
    return {
        kind: {
            "ms": [1000 * one.latency for one in outcomes if one.kind == kind and one.verdict == "right"],
            "others": [one.verdict for one in outcomes if one.kind == kind and one.verdict != "right"],
        }
        for kind in RATES
    }


def _milliseconds(values: Sequence[float]) -> list[float]:
    """Median, 95th percentile and the largest; nothing if there are none."""
    if not values:
        return []
    several = [*values, *values]  # percentiles need two values
    return [percentile(several, 50), percentile(several, 95), max(values)]


BENCHMARK = Benchmark(
    name="waiting",
    title="Searches and healthy pictures beside hosts that make us wait: milliseconds to the answer",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    by_default=True,
)
