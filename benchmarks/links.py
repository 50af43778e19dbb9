"""Downloads of pictures over a slow link: pictures lost, and share of the link used, by our fetcher and by Marqo.

Each cell is an emulated link (benchmarks/lib/link.py), a size of pictures and a number of clients, each with one
request. Both ways fetch the same number of pictures, one way after the other, and from cell to cell the other way comes
first. Before them one picture is fetched with nothing else on the link. If it does not arrive within its 3 s, nothing
more is measured in that cell: so each picture that is lost would have arrived alone.

*Link used*: bytes of pictures that arrived, over what the link could have carried while there was work. The link's rate
counts IP packets, so pictures are 96.5 % of it at best. The time with work ends when fewer pictures are unfinished than
Marqo's threads download at a time, or than a quarter of all if that is less. Bytes of pictures that were lost do not
count. *After 2 s*: without the first two seconds, in which a client that starts with few downloads finds out what the
link can carry. *Ceiling*: what our fetcher can use at best. It has 20 downloads of a request (`downloadThreadCount`)
and 64 of a host (`max_per_host`) under way at a time, which are too few for small pictures and a long round trip.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.lib.benchmark import Benchmark, Figures, Option, Result, Table
from benchmarks.lib.link import ROUTER, Link, RunningLink, emulated
from benchmarks.lib.places import ROOT
from benchmarks.lib.process import stop
from embedding.fetch.fetcher import FetchSettings

OURS, MARQO = "ours", "Marqo's"
WAYS = (OURS, MARQO)
RATES = (1.0, 5.0, 50.0)
"""MB/s."""
ROUND_TRIPS = (1.0, 200.0)
"""ms."""
SIZES = (30_000, 300_000, 3_000_000)
CLIENTS = (1, 4)
THREADS = 20
TIMEOUT_MS = 3000
AT_A_TIME = FetchSettings().max_per_host
LINK_S = {1.0: 9.0, 5.0: 6.0, 50.0: 4.0}
"""Seconds of a link's time that a cell's pictures take at least."""
LATENCY_S = 8.0
"""Seconds in which a client's threads fetch their pictures at most, with two round trips for each."""
FOUND_S = 2.0
"""Seconds in which a client that starts with few downloads finds out what the link can carry."""
QUICK = ((5.0, 1.0), (5.0, 200.0), (50.0, 1.0))
AIM = 0.9
"""Share of the link that our fetcher should use."""
OPTIONS = (
    Option("cell", float, ("RATE", "ROUND_TRIP", "KB", "CLIENTS"), "only this cell; MB/s and ms", partial=True),
    Option("fetcher", str, ("FOLDER",), "a checkout whose embedding/ is measured instead of this one", partial=True),
)


def measure(quick: bool, cell: Sequence[float] | None = None, fetcher: str = "") -> Result:
    """For each cell: what it is, whether a picture alone arrives, and for each way the figures of `figures`.

    Args:
        quick: fewer cells, and fewer pictures in each.
        cell: only this one: MB/s, round trip in ms, KB of a picture, clients.
        fetcher: another checkout, whose fetcher is measured.
    """
    if cell is None:
        links = [Link(*one) for one in (QUICK if quick else itertools.product(RATES, ROUND_TRIPS))]
        loads = list(itertools.product(SIZES[:2] if quick else SIZES, CLIENTS))
    else:
        rate, round_trip_ms, kilobytes, clients = cell
        links, loads = [Link(rate, round_trip_ms)], [(round(1000 * kilobytes), round(clients))]
    cells: list[dict[str, Any]] = []
    emulators = set()
    for link in links:
        with emulated(link) as running, asking(running, fetcher) as ask:
            emulators.add(running.module.rpartition(".")[2])
            for load in loads:
                cells.append(_cell(link, running, ask, *load, len(cells), 2 if quick else 1))
    versions = {"pycurl": importlib.metadata.version("pycurl")}
    return {"cells": cells, "emulators": sorted(emulators), "versions": versions}


def rows(result: Mapping[str, Any]) -> Table:
    """A line for each cell, with both ways beside each other."""
    names = ("lost", "link used, %", "used after 2 s, %", "s in all", "a transfer, median – p95 s")
    columns = [f"{way}: {name}" for name in names for way in WAYS]
    table = [["link, picture, clients", "pictures", "one alone, s", *columns, "ceiling, %"]]
    for cell in result["cells"]:
        alone = "not in time" if cell["alone"] is None else f"{cell['alone']:.2f}"
        figures = [_cells(cell["ways"][way]) if cell["ways"] else ["–"] * len(names) for way in WAYS]
        pairs = [text for pair in zip(*figures, strict=True) for text in pair]
        table.append([_name(cell), str(cell["pictures"]), alone, *pairs, f"{100 * cell['ceiling']:.0f}"])
    if {name.rpartition(".")[2] for name in result["emulators"]} != {ROUTER.rpartition(".")[2]}:
        table.append([f"(links by {', '.join(result['emulators'])}: no loss of packets)", *[""] * (len(table[0]) - 1)])
    return table


def _cells(figures: Mapping[str, Any]) -> list[str]:
    took = "–" if figures["median"] is None else f"{figures['median']:.2f} – {figures['p95']:.2f}"
    later = "–" if figures["used later"] is None else f"{100 * figures['used later']:.0f}"
    return [str(figures["lost"]), f"{100 * figures['used']:.0f}", later, f"{figures['seconds']:.1f}", took]


def summary(result: Mapping[str, Any]) -> Figures:
    """All cells together."""
    cells = [cell for cell in result["cells"] if cell["alone"] is not None]
    if not cells:
        return {}
    ours, marqo = ([cell["ways"][way] for cell in cells] for way in WAYS)
    return {
        "links_lost": [float(sum(one["lost"] for one in ours))],
        "links_lost_marqo": [float(sum(one["lost"] for one in marqo))],
        "links_cells_with_more_lost": [float(sum(a["lost"] > b["lost"] for a, b in zip(ours, marqo, strict=True)))],
        "links_cells_below_aim": [
            float(sum(one["used"] < AIM * min(1.0, cell["ceiling"]) for one, cell in zip(ours, cells, strict=True)))
        ],
        "links_worst_used": [min(one["used"] for one in ours)],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """For each cell that was measured the share of the link as dots, and the pictures lost as bars."""
    cells = [cell for cell in result["cells"] if cell["alone"] is not None]
    for way, color, shift in zip(WAYS, ("tab:blue", "tab:orange"), (-0.2, 0.2), strict=True):
        at = [i + shift for i in range(len(cells))]
        lost = [100 * cell["ways"][way]["lost"] / cell["pictures"] for cell in cells]
        axes.bar(at, lost, 0.4, color=color, alpha=0.35, label=f"{way}: pictures lost")
        used = [100 * cell["ways"][way]["used"] for cell in cells]
        axes.plot(at, used, "o", markersize=4, color=color, label=f"{way}: link used")
    axes.hlines(AIM * 100, -0.5, len(cells) - 0.5, color="grey", linestyle=":")
    ceilings = [100 * cell["ceiling"] for cell in cells]
    axes.step(range(len(cells)), ceilings, where="mid", color="grey", linewidth=0.8, label="ceiling of ours")
    axes.set_xticks(range(len(cells)), [_name(cell) for cell in cells], rotation=90, fontsize=6)
    axes.set_ylim(0, 105)
    axes.set_ylabel("%")
    axes.figure.legend(loc="outside lower center", ncols=5, fontsize=7)


def _cell(
    link: Link, running: RunningLink, ask: Ask, nbytes: int, clients: int, number: int, divisor: int
) -> dict[str, Any]:
    each = _pictures(link, nbytes, clients, divisor)
    cell: dict[str, Any] = {**asdict(link), "nbytes": nbytes, "clients": clients, "pictures": each * clients}
    cell["ceiling"] = min(1.0, min(AT_A_TIME, THREADS * clients) * nbytes / link.in_flight)
    alone = ask(MARQO, f"{number}-alone", nbytes, 1, 1)["pictures"][0]
    cell["alone"] = None if alone["problem"] else alone["ended"] - alone["asked"] + link.round_trip_ms / 1000
    cell["ways"] = {}
    if cell["alone"] is not None:
        for way in WAYS if number % 2 else reversed(WAYS):
            before = running.crossed()[-1][1], running.dropped()
            seen = ask(way, f"{number}-{way[0]}", nbytes, clients, each)
            cell["ways"][way] = figures(link, nbytes, clients, seen, running.crossed(), before[0])
            cell["ways"][way]["dropped"] = running.dropped() - before[1]
    lines = [
        f"{way} lost {one['lost']} used {one['used']:.2f} in {one['seconds']:.1f} s"
        for way, one in cell["ways"].items()
    ]
    print(f"{_name(cell)}: {', '.join(lines) or 'a picture alone is not in time'}", flush=True)
    return cell


def _pictures(link: Link, nbytes: int, clients: int, divisor: int) -> int:
    """Pictures of each client: enough to keep the link busy for `LINK_S`, fewer if round trips take too long."""
    by_bytes = LINK_S[link.rate] / divisor * link.bytes_per_s / nbytes / clients
    by_round_trips = THREADS * LATENCY_S / divisor * 1000 / (2 * link.round_trip_ms)
    return max(4, round(min(by_bytes, by_round_trips)))


def figures(
    link: Link,
    nbytes: int,
    clients: int,
    seen: Mapping[str, Any],
    crossed: Sequence[tuple[float, int]],
    before: int,
) -> dict[str, Any]:
    """What one way achieved in one cell.

    Args:
        link: the emulated link.
        nbytes: of a picture.
        clients: how many.
        seen: the clients' answer, as `Ask` returns it.
        crossed: bytes that had crossed the link, by moment (`time.monotonic()`).
        before: bytes that had crossed the link before.

    Returns:
        Pictures that `arrived` and that were `lost`, the share of the link `used`, the same without the first seconds
        (`used later`), `seconds` in all, `median` and `p95` of the seconds from a request to its picture, and some
        `problems`.
    """
    began, pictures = seen["began"], seen["pictures"]
    ends = sorted(one["ended"] for one in pictures)
    good = [one for one in pictures if not one["problem"]]
    took = sorted(one["ended"] - one["asked"] + link.round_trip_ms / 2000 for one in good)
    tail = max(1, min(THREADS * clients, len(ends) // 4))
    until = ends[-tail - 1] if len(ends) > tail else ends[-1]
    all_bytes = crossed[-1][1] - before
    useful = len(good) * nbytes / all_bytes if all_bytes else 0.0
    rates = [_crossed_per_s(crossed, before, since, until) for since in (began, began + FOUND_S)]
    used, later = (useful * rate / link.bytes_per_s for rate in rates)
    return {
        "arrived": len(good),
        "lost": len(pictures) - len(good),
        "used": used,
        "used later": later if until > began + 2 * FOUND_S else None,
        "seconds": ends[-1] - began,
        "median": statistics.median(took) if took else None,
        "p95": took[len(took) * 95 // 100] if took else None,
        "problems": sorted({one["problem"].rpartition("`: ")[2] for one in pictures if one["problem"]})[:5],
    }


def _crossed_per_s(crossed: Sequence[tuple[float, int]], before: int, since: float, until: float) -> float:
    """Bytes per second that crossed the link in a span; `before`: bytes that had crossed it before all samples."""

    def by(moment: float) -> int:
        return max(before, max((total for at, total in crossed if at <= moment), default=before))

    return (by(until) - by(since)) / (until - since) if until > since else 0.0


class Ask:
    """Has the process of the clients do one job after the other.

    Args:
        process: runs benchmarks/lib/link_clients.py.
        url: of the picture host.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        self._url = url

    def __call__(self, way: str, run: str, nbytes: int, clients: int, pictures: int) -> dict[str, Any]:
        job = {
            "way": way,
            "url": self._url,
            "run": run,
            "nbytes": nbytes,
            "clients": clients,
            "pictures": pictures,
            "threads": THREADS,
            "timeout_ms": TIMEOUT_MS,
            "allowed": "10.0.0.0/8,127.0.0.0/8",
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def asking(running: RunningLink, fetcher: str = "") -> Iterator[Ask]:
    """The clients of a link, in a process of their own, while the context lasts; `fetcher` as in `measure`."""
    command = [sys.executable, "-m", "benchmarks.lib.link_clients"]
    if running.network_of is not None:
        command += ["--network-of", str(running.network_of)]
    if fetcher:
        command += ["--fetcher", fetcher]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        yield Ask(process, running.url)
    finally:
        stop(process)


def _name(cell: Mapping[str, Any]) -> str:
    size = f"{cell['nbytes'] // 1000} KB" if cell["nbytes"] < 1e6 else f"{cell['nbytes'] // 1_000_000} MB"
    return f"{cell['rate']:.0f} MB/s {cell['round_trip_ms']:.0f} ms, {size}, {cell['clients']}"


BENCHMARK = Benchmark(
    name="links",
    title="Links: pictures lost and share of the link used, ours beside Marqo's way",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    options=OPTIONS,
    by_default=True,
)
