"""Five times what the server can do, for three minutes: what it still does, what the refused get, and what is left.

The load: requests of 32 pictures by URL, and searches for a text. The sustainable rate is what four clients get who
wait for each answer, and send the one and the other in turn. Then an open loop offers 80 % of that rate, an overload,
and 80 % again, without a pause. Twice: five times the pictures beside as many searches as before, as when somebody
reindexes; and five times both. Contents count only if their vectors are right. The rate that they are compared with is
the mean of what was sustainable before and after: machines drift.

The server keeps searches apart from pictures and refuses next to none of them, though one costs more than a picture, so
with five times the searches it does other work than at the sustainable rate. Goodput is therefore also compared with
what is sustainable beside as many searches as in the overload: four clients that wait for each answer ask for pictures,
and searches come at the overload's rate; before and after it, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.load import BATCH, once
from benchmarks.lib.offered import Ask, Outcome, Phase, asked, closed, offer
from benchmarks.lib.server import Shape, described, graph
from benchmarks.lib.target import Target, marqo
from benchmarks.lib.watch import Sample, total, watching
from benchmarks.lib.web import web
from benchmarks.stages import QUERY

NAME = "overload"
TITLE = "Five times the sustainable rate, then normal load again: contents per second, rightly answered"
OVERLOAD, NORMAL = 5.0, 0.8
KINDS = ("pictures", "search")
CLIENTS = 4
SHAPE = Shape(ingress={"max_items_in_flight": CLIENTS * BATCH, "max_searches_in_flight": 2 * CLIENTS})
"""Half a second of work at a time: it keeps the pipeline full, and what waits when the overload ends is soon done. The
default is ten seconds of work, since Marqo gives up a batch that is refused."""
AIM = 0.9
WINDOW_S, LONG_WINDOW_S = 5.0, 30.0
"""Goodput is counted in windows of these lengths; the first second of a phase still answers what came before it."""
RECOVERED_S = 3.0
SLOWER = 1.5
"""Recovered is the start of three seconds without a refusal whose median latency, by kind of request, is at most this
many times the median from before."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Args:
    name: for tables.
    key: begins the names of its figures in the summary.
    times: what is offered in the overload, of each kind, over the sustainable rate.
    """

    name: str
    key: str
    times: Mapping[str, float]


SCENARIOS = (
    Scenario("pictures x 5", "overload", {"pictures": OVERLOAD, "search": NORMAL}),
    Scenario("all x 5", "overload_of_all", {"pictures": OVERLOAD, "search": OVERLOAD}),
)


def measure(quick: bool) -> dict[str, Any]:
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
    machine = [_at_the_time(sample, began) for sample in samples]
    return {
        "shape": described(SHAPE),
        "scenarios": [_result(*one, began, machine) for one in measured],
        "machine": machine,
    }


def _phases(scenario: Scenario, load: float, normal: float, over: float) -> list[Phase]:
    """Of `load` requests of each kind per second."""
    usual = dict.fromkeys(KINDS, NORMAL * load)
    overload = {kind: times * load for kind, times in scenario.times.items()}
    return [Phase("before", usual, normal), Phase("overload", overload, over), Phase("after", usual, normal)]


def _rates(outcomes: Sequence[Outcome], seconds: float) -> list[int]:
    """Contents of each second; the first third only warms up."""
    return _by_second(outcomes, seconds)[int(seconds / 3) :]


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
    phases = [_digest(phase, rate, machine) for phase in offered]
    return {
        "name": scenario.name,
        "contents per second": rate,
        "worst of the sustainable": min(min(_windows(run)) for run in sustainable) / rate,
        "contents per second beside searches": rate_beside,
        "goodput beside searches": phases[1]["goodput"] * rate / rate_beside,
        "phases": phases,
        "recovery s": _recovery(before, after),
    }


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A table: header first."""
    scenarios = result["scenarios"]
    phases = [phase for scenario in scenarios for phase in scenario["phases"]]
    spans = [(phase["started"], phase["started"] + phase["seconds"]) for phase in phases]

    def line(name: str, key: str, digits: int = 0, scale: float = 1.0) -> list[str]:
        return [name, *(_figure(phase[key], digits, scale) for phase in phases)]

    def held(name: str, key: str, begin: float = 0.0, end: float = 1.0) -> list[str]:
        parts = [(start + begin * (stop - start), start + end * (stop - start)) for start, stop in spans]
        return [name, *(_median_mib(result["machine"], key, *part) for part in parts)]

    def at_the_end(name: str, key: str, digits: int, scale: float = 1.0) -> list[str]:
        return [name, *(cell for one in scenarios for cell in ("", "", _figure(one[key], digits, scale)))]

    return [
        ["", *(f"{one['name']}: {phase['name']}" for one in scenarios for phase in one["phases"])],
        line("offered, % of the sustainable rate", "offered", 0, 100),
        line("goodput, % of the sustainable rate", "goodput", 0, 100),
        line("… its worst 30 seconds, %", "worst half minute", 0, 100),
        line("… its worst 5 seconds, %", "worst goodput", 0, 100),
        line("… windows of 5 seconds below 90 %, %", "windows below aim", 0, 100),
        line("… pictures per second", "pictures per second"),
        line("… searches per second", "searches per second", 1),
        line("refused: 503 with Retry-After and detail", "refused"),
        line("any other failure, or a wrong vector", "wrong"),
        line("refusal, p50 ms", "refused p50", 1, 1000),
        line("refusal, p99 ms", "refused p99", 1, 1000),
        line("accepted, 32 pictures, p50 ms", "pictures p50", 0, 1000),
        line("accepted, 32 pictures, p99 ms", "pictures p99", 0, 1000),
        line("accepted search, p50 ms", "search p50", 0, 1000),
        line("accepted search, p99 ms", "search p99", 0, 1000),
        line("CPU of the load generator, cores of 2", "cores", 2),
        line("cores of 2 that were busy", "busy", 2),
        line("… in the worst 5 seconds", "worst busy", 2),
        line("cores of 2 that the host gave to others", "stolen", 2),
        line("… in the worst 5 seconds", "worst stolen", 2),
        held("memory of all processes, MiB", "anonymous"),
        held("… its first third, MiB", "anonymous", 0, 1 / 3),
        held("… its last third, MiB", "anonymous", 2 / 3, 1),
        held("object store, MiB", "object bytes"),
        at_the_end("recovered after the overload, s", "recovery s", 1),
        at_the_end("sustainable, contents per second", "contents per second", 0),
        at_the_end("… its own worst 5 seconds, %", "worst of the sustainable", 0, 100),
        at_the_end("sustainable beside the overload's searches", "contents per second beside searches", 0),
        at_the_end("… goodput of the overload, % of that", "goodput beside searches", 0, 100),
    ]


def summary(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Figures of the summary."""
    figures = {}
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


def _asks(bulk: Target, search: Target, urls: Sequence[str]) -> list[Ask]:
    """Pictures and a search in turn, with the vectors that the idle server gives for them."""
    asks = []
    for i in range(16):
        start = 4 * i % len(urls)
        asks.append(asked(KINDS[0], bulk, [*urls[start:], *urls[:start]][:BATCH]))
        asks.append(asked(KINDS[1], search, [QUERY.format(i)]))
    return asks


def _by_second(outcomes: Sequence[Outcome], seconds: float) -> list[int]:
    """Contents that were rightly answered in each second."""
    counts = [0] * int(seconds)
    for one in outcomes:
        if one.verdict == "right" and one.done < len(counts):
            counts[int(one.done)] += one.contents
    return counts


def _windows(by_second: Sequence[int], seconds: float = WINDOW_S) -> list[float]:
    """Means of all windows of that length."""
    width = min(int(seconds), len(by_second))
    return [sum(by_second[i : i + width]) / width for i in range(len(by_second) - width + 1)]


def _digest(phase: Mapping[str, Any], sustainable: float, machine: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    outcomes: list[Outcome] = phase["outcomes"]
    started, seconds = phase["started"], phase["seconds"]
    # What came before the phase is answered in its beginning, what comes at its end after it: neither is counted.
    right = [one for one in outcomes if one.verdict == "right" and one.done <= seconds]
    by_second = _by_second(outcomes, seconds)
    windows = _windows(by_second[1:])
    worst = started + 1 + windows.index(min(windows))
    others = [one.verdict for one in outcomes if one.verdict not in ("right", "refused")]
    digest = {
        "name": phase["name"],
        "started": started,
        "seconds": seconds,
        "cores": phase["cores"],
        "offered": sum(one.contents for one in outcomes) / seconds / sustainable,
        "goodput": statistics.mean(by_second[1:]) / sustainable,
        "worst half minute": min(_windows(by_second[1:], LONG_WINDOW_S)) / sustainable,
        "worst goodput": min(windows) / sustainable,
        "windows below aim": statistics.mean(one < AIM * sustainable for one in windows),
        "pictures per second": sum(one.contents for one in right if one.kind == "pictures") / seconds,
        "searches per second": sum(one.contents for one in right if one.kind == "search") / seconds,
        "refused": sum(one.verdict == "refused" for one in outcomes),
        "wrong": len(others),
        "what was wrong": sorted(set(others))[:10],
        "answered by second": by_second,
    }
    for name in ("busy", "stolen"):
        digest[name] = _cores(machine, name, started, started + seconds)
        digest[f"worst {name}"] = _cores(machine, name, worst, worst + WINDOW_S)
    for name, chosen in (
        ("refused", [one for one in outcomes if one.verdict == "refused"]),
        ("pictures", [one for one in outcomes if one.verdict == "right" and one.kind == "pictures"]),
        ("search", [one for one in outcomes if one.verdict == "right" and one.kind == "search"]),
    ):
        latencies = sorted(one.latency for one in chosen)
        for percent in (50, 99):
            digest[f"{name} p{percent}"] = latencies[len(latencies) * percent // 100] if latencies else None
    return digest


def _recovery(before: Sequence[Outcome], after: Sequence[Outcome]) -> float | None:
    """Seconds of normal load until all is as it was; None if it never was."""
    limits = {kind: SLOWER * statistics.median(_latencies(before, kind)) for kind in KINDS}
    end = max(one.due for one in after)
    tenths = 0
    while (start := tenths / 10) + RECOVERED_S <= end:
        window = [one for one in after if start <= one.due < start + RECOVERED_S]
        calm = all(one.verdict == "right" for one in window)
        # The first second of the window by itself: three seconds would hide a slow start.
        first = [one for one in window if one.due < start + 1]
        if calm and all(
            _is_quick(first, kind, limit) and _is_quick(window, kind, limit) for kind, limit in limits.items()
        ):
            return start
        tenths += 1
    return None


def _is_quick(outcomes: Sequence[Outcome], kind: str, limit: float) -> bool:
    latencies = _latencies(outcomes, kind)
    return bool(latencies) and statistics.median(latencies) <= limit


def _latencies(outcomes: Sequence[Outcome], kind: str) -> list[float]:
    return [one.latency for one in outcomes if one.kind == kind and one.verdict == "right"]


def _at_the_time(sample: Sample, started: float) -> dict[str, float]:
    return {
        "at": sample["at"] - started,
        "rss": total(sample, "rss"),
        "anonymous": total(sample, "anonymous"),
        "object bytes": sample["object bytes"],
        "objects": sample["objects"],
        "busy": sample["busy"],
        "stolen": sample["stolen"],
    }


def _cores(machine: Sequence[Mapping[str, float]], name: str, start: float, end: float) -> float | None:
    """CPU seconds per second between the samples of a span."""
    inside = [one for one in machine if start <= one["at"] <= end]
    if len(inside) < 2:
        return None
    return (inside[-1][name] - inside[0][name]) / (inside[-1]["at"] - inside[0]["at"])


def _median_mib(machine: Sequence[Mapping[str, float]], key: str, start: float, end: float) -> str:
    values = [one[key] for one in machine if start <= one["at"] < end]
    return f"{statistics.median(values) / 2**20:.0f}" if values else "–"


def _figure(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"
