"""Five times the load that the server can sustain, for three minutes: goodput, refusals, and recovery afterwards.

The load: requests of 32 pictures by URL, and searches for a text. The sustainable rate is what four clients get that
wait for each answer and send the one and the other in turn. Then 80 % of that rate is offered, an overload, and 80 %
again, without a pause. There are two overloads: five times the pictures beside as many searches as before, as when an
index is rebuilt; and five times both. An item counts only if its vector is right. The rate for comparison is the mean
of the sustainable rates before and after, since machines drift.

The server admits searches apart from pictures and refuses next to none of them, though a search costs more than a
picture: with five times the searches it does other work than at the sustainable rate. So goodput is compared with a
second rate too, before and after: what four clients that ask for pictures only get beside the overload's searches.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.digest import AIM, at_the_time, by_second, digest, recovery, windows
from benchmarks.lib.load import BATCH, once
from benchmarks.lib.offered import Ask, Outcome, Phase, asked, closed, offer
from benchmarks.lib.queries import queries
from benchmarks.lib.server import Shape, described, graph
from benchmarks.lib.target import Target, marqo
from benchmarks.lib.watch import watching
from benchmarks.lib.web import web

OVERLOAD, NORMAL = 5.0, 0.8
KINDS = ("pictures", "search")
CLIENTS = 4
SHAPE = Shape(ingress={"max_items_in_flight": CLIENTS * BATCH, "max_searches_in_flight": 2 * CLIENTS})
"""Half a second of work at a time: enough to keep the pipeline full, and little is left to do when the overload ends.
The default is ten seconds of work, since Marqo gives up a batch that is refused."""
LINES = (
    ("offered, % of the sustainable rate", "offered", 0, 100),
    ("goodput, % of the sustainable rate", "goodput", 0, 100),
    ("… its worst 30 seconds, %", "worst half minute", 0, 100),
    ("… its worst 5 seconds, %", "worst goodput", 0, 100),
    ("… windows of 5 seconds below 90 %, %", "windows below aim", 0, 100),
    ("… pictures per second", "pictures per second", 0, 1),
    ("… searches per second", "searches per second", 1, 1),
    ("refused: 503 with Retry-After and detail", "refused", 0, 1),
    ("any other failure, or a wrong vector", "wrong", 0, 1),
    ("refusal, p50 ms", "refused p50", 1, 1000),
    ("refusal, p99 ms", "refused p99", 1, 1000),
    ("accepted, 32 pictures, p50 ms", "pictures p50", 0, 1000),
    ("accepted, 32 pictures, p99 ms", "pictures p99", 0, 1000),
    ("accepted search, p50 ms", "search p50", 0, 1000),
    ("accepted search, p99 ms", "search p99", 0, 1000),
    ("CPU of the load generator, cores of 2", "cores", 2, 1),
    ("cores of 2 that were busy", "busy", 2, 1),
    ("… in the worst 5 seconds", "worst busy", 2, 1),
    ("cores of 2 that the host gave to others", "stolen", 2, 1),
    ("… in the worst 5 seconds", "worst stolen", 2, 1),
)
"""Lines of the table, a column for each phase: label, key in the phase's digest, digits, factor."""
MEMORY_LINES = (
    ("memory of all processes, MiB", "anonymous", 0.0, 1.0),
    ("… its first third, MiB", "anonymous", 0.0, 1 / 3),
    ("… its last third, MiB", "anonymous", 2 / 3, 1.0),
    ("object store, MiB", "object bytes", 0.0, 1.0),
)
"""Label, key of the machine's samples, and the part of the phase."""
SCENARIO_LINES = (
    ("recovered after the overload, s", "recovery s", 1, 1),
    ("sustainable, contents per second", "contents per second", 0, 1),
    ("… its own worst 5 seconds, %", "worst of the sustainable", 0, 100),
    ("sustainable beside the overload's searches", "contents per second beside searches", 0, 1),
    ("… goodput of the overload, % of that", "goodput beside searches", 0, 100),
)
"""Lines with one figure for each scenario: label, key, digits, factor."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One overload.

    Args:
        name: for tables.
        key: the start of its figures' names in the summary.
        times: what is offered of each kind, over the sustainable rate.
    """

    name: str
    key: str
    times: Mapping[str, float]


SCENARIOS = (
    Scenario("pictures x 5", "overload", {"pictures": OVERLOAD, "search": NORMAL}),
    Scenario("all x 5", "overload_of_all", {"pictures": OVERLOAD, "search": OVERLOAD}),
)


def measure(quick: bool) -> Result:
    """For each scenario the rates, what became of the requests of each phase, and the server's memory meanwhile."""
    normal, over, calibration = (8.0, 20.0, 9.0) if quick else (30.0, 180.0, 30.0)
    checkpoint = models.small_clip()
    with web(pictures.normal()) as urls, graph(SHAPE) as server:
        bulk = marqo(server.url, checkpoint.properties)
        search = marqo(server.url, checkpoint.properties, "language", search=True)
        once(bulk, urls)
        asks = _asks(bulk, search, urls)
        sustainable = [_rates(closed(asks, CLIENTS, calibration, {}), calibration)]
        measured = []
        with watching(server.pid, 1.0) as samples:
            for scenario in SCENARIOS:
                load = statistics.mean(sustainable[-1]) / (BATCH + 1)
                searches = {"search": scenario.times["search"] * load}
                beside = [_rates(closed(asks, CLIENTS, calibration, searches), calibration)]
                offered = offer(asks, _phases(scenario, load, normal, over))
                beside.append(_rates(closed(asks, CLIENTS, calibration, searches), calibration))
                sustainable.append(_rates(closed(asks, CLIENTS, calibration, {}), calibration))
                measured.append((scenario, offered, sustainable[-2:], beside))
    began = measured[0][1][0]["started"]
    machine = [at_the_time(sample, began) for sample in samples]
    return {
        "shape": described(SHAPE),
        "scenarios": [_result(*one, began, machine) for one in measured],
        "machine": machine,
    }


def _asks(bulk: Target, search: Target, urls: Sequence[str]) -> list[Ask]:
    """Pictures and a search in turn, with the vectors that the idle server gives for them."""
    asks = []
    for i, text in enumerate(queries(16)):
        start = 4 * i % len(urls)
        asks.append(asked(KINDS[0], bulk, [*urls[start:], *urls[:start]][:BATCH]))
        asks.append(asked(KINDS[1], search, [text]))
    return asks


def _phases(scenario: Scenario, load: float, normal: float, over: float) -> list[Phase]:
    """The phases of a scenario, where `load` requests of each kind per second are sustainable."""
    usual = dict.fromkeys(KINDS, NORMAL * load)
    overload = {kind: times * load for kind, times in scenario.times.items()}
    return [Phase("before", usual, normal), Phase("overload", overload, over), Phase("after", usual, normal)]


def _rates(outcomes: Sequence[Outcome], seconds: float) -> list[int]:
    """Items of each second. The first third of the time is a warm-up and is left out."""
    return by_second(outcomes, seconds)[int(seconds / 3) :]


def _result(
    scenario: Scenario,
    offered: Sequence[dict[str, Any]],
    sustainable: Sequence[Sequence[int]],
    beside: Sequence[Sequence[int]],
    began: float,
    machine: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    for phase in offered:
        phase["started"] -= began
    before, _, after = (phase["outcomes"] for phase in offered)
    rate, rate_beside = (statistics.mean(map(statistics.mean, runs)) for runs in (sustainable, beside))
    phases = [digest(phase, rate, machine) for phase in offered]
    return {
        "name": scenario.name,
        "contents per second": rate,
        "worst of the sustainable": min(min(windows(run)) for run in sustainable) / rate,
        "contents per second beside searches": rate_beside,
        "goodput beside searches": phases[1]["goodput"] * rate / rate_beside,
        "phases": phases,
        "recovery s": recovery(before, after),
    }


def rows(result: Mapping[str, Any]) -> Table:
    """A column for each phase of each scenario."""
    scenarios = result["scenarios"]
    phases = [phase for scenario in scenarios for phase in scenario["phases"]]
    table = [["", *(f"{one['name']}: {phase['name']}" for one in scenarios for phase in one["phases"])]]
    for label, key, digits, factor in LINES:
        table.append([label, *(_figure(phase[key], digits, factor) for phase in phases)])
    for label, key, begin, end in MEMORY_LINES:
        table.append([label, *(_mib(result["machine"], key, phase, begin, end) for phase in phases)])
    for label, key, digits, factor in SCENARIO_LINES:
        table.append([label, *(cell for one in scenarios for cell in ("", "", _figure(one[key], digits, factor)))])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """Goodput, refusals and recovery of each scenario."""
    figures: dict[str, float | None] = {}
    for scenario, one in zip(SCENARIOS, result["scenarios"], strict=True):
        over = one["phases"][1]
        figures |= {
            f"{scenario.key}_goodput": over["goodput"],
            f"{scenario.key}_goodput_beside_searches": one["goodput beside searches"],
            f"{scenario.key}_worst_half_minute": over["worst half minute"],
            f"{scenario.key}_worst_goodput": over["worst goodput"],
            f"{scenario.key}_refusal_p99_ms": over["refused p99"] and 1000 * over["refused p99"],
            f"{scenario.key}_wrong": sum(phase["wrong"] for phase in one["phases"]),
            f"{scenario.key}_recovery_s": one["recovery s"],
        }
    return {name: [figure] for name, figure in figures.items() if figure is not None}


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Goodput over time, and memory beside it."""
    for one in result["scenarios"]:
        for phase in one["phases"]:
            starts = [phase["started"] + i for i in range(len(phase["answered by second"]))]
            axes.step(starts, phase["answered by second"], where="post", label=f"{one['name']}: {phase['name']}")
        ends = (one["phases"][0]["started"], starts[-1])
        axes.hlines(AIM * one["contents per second"], *ends, linestyles=":", colors="grey")
    axes.set_ylim(0)
    axes.set_xlabel("seconds; dotted: 90 % of the sustainable rate")
    axes.set_ylabel("contents per second, answered rightly")
    axes.legend(loc="lower left", fontsize="small")
    beside = axes.twinx()
    beside.plot(
        [one["at"] for one in result["machine"]], [one["anonymous"] / 2**20 for one in result["machine"]], color="black"
    )
    beside.set_ylim(0)
    beside.set_ylabel("memory of all serving processes, MiB (black)")


def _mib(machine: Sequence[Mapping[str, float]], key: str, phase: Mapping[str, float], begin: float, end: float) -> str:
    """Median MiB in the part of a phase from `begin` to `end`, both shares of its length."""
    first, last = (phase["started"] + part * phase["seconds"] for part in (begin, end))
    values = [one[key] for one in machine if first <= one["at"] < last]
    return _figure(statistics.median(values) if values else None, 0, 2**-20)


def _figure(value: float | None, digits: int, factor: float) -> str:
    return "–" if value is None else f"{factor * value:.{digits}f}"


BENCHMARK = Benchmark(
    name="overload",
    title="Five times the sustainable rate, then normal load again: contents per second, rightly answered",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    by_default=True,
)
