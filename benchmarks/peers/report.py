"""What a comparison has shown: its table, its figures, what is wrong with it, and its diagram.

Input: the result of `benchmarks.peers.comparison`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lib.benchmark import Figures, Table

MOST_DEVIATION = 0.01
"""Of a vector from the right one, in units of the distance between two pictures: see `benchmarks.peers.reference`."""
RATIOS = {"vs_bentoml": "BentoML", "vs_infinity": "infinity", "vs_plain": "plain"}
"""Figures of the summary, and the families."""


def rows(result: Mapping[str, Any]) -> Table:
    """A line for each server that was compared, then one for each way that was tried."""
    rounds = result["rounds"]
    ours = [name for name in rounds[0] if result["entrants"][name]["family"] == "ours"]
    table = [["server", "pictures/s", "range", "CPU ms per picture", "1 - cosine", *(f"{one} / it" for one in ours)]]
    for name in rounds[0]:
        rates = [one[name]["rate"] for one in rounds]
        costs = [one[name]["cpu ms"] for one in rounds if one[name]["rate"]]
        far = [one[name]["deviation"] for one in rounds if one[name]["deviation"] is not None]
        cells = [
            shown_rate(statistics.median(rates)) if any(rates) else f"none: {_problems(rounds, name)}",
            f"{shown_rate(min(rates))} - {shown_rate(max(rates))}" if any(rates) else "–",
            f"{statistics.median(costs):.1f}" if costs else "–",
            f"{max(far):.0e}" if far else "–",
        ]
        table.append([name, *cells, *(_median(_over(rounds, one, name)) for one in ours)])
    return table + _tried_rows(result, len(table[0])) + _tensor_rows(result, len(table[0]))


def _problems(rounds: Sequence[Mapping[str, Any]], name: str) -> str:
    return "; ".join(dict.fromkeys(one[name]["problem"] for one in rounds if one[name]["problem"]))


def shown_rate(value: float) -> str:
    """Pictures per second, for a table."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}" if values else "–"


def _over(rounds: Sequence[Mapping[str, Any]], ours: str, other: str) -> list[float]:
    """One speed over another one, of the rounds in which both answered."""
    pairs = [(one[ours]["rate"], one[other]["rate"]) for one in rounds]
    return [mine / its for mine, its in pairs if mine and its]


def _tried_rows(result: Mapping[str, Any], width: int) -> Table:
    """Of the configurations that were tried: those of one family and way in one line."""
    by_way: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, found in result["tried"].items():
        entrant = result["entrants"][name]
        by_way.setdefault((entrant["family"], entrant["way"]), {})[name] = found
    table = []
    for (family, way), found in by_way.items():
        rates = [one["rate"] for one in found.values() if one["rate"]]
        what = f"({family}, {way}: {len(found)} tried)"
        if rates:
            best = max(found, key=lambda name: found[name]["rate"])
            shown = [shown_rate(max(rates)), f"{shown_rate(min(rates))} - {shown_rate(max(rates))}"]
            table.append([what if len(found) == 1 else f"({len(found)} tried, best: {best})", *shown])
        else:
            table.append([what, "none: " + "; ".join(dict.fromkeys(one["problem"] for one in found.values()))])
    return [[*line, *[""] * (width - len(line))] for line in table]


def _tensor_rows(result: Mapping[str, Any], width: int) -> Table:
    table = []
    for one in result["bentoml tensors"]:
        what = f"BentoML, JSON tensors, one request of {one['batch']}"
        table.append([what, shown_rate(1000 / one["ms per picture"]), *[""] * (width - 2)])
    return table


def ratios(result: Mapping[str, Any]) -> Figures:
    """Our speed over that of each other server's quickest fp32 configuration, in each round in which both answered.

    Of our bf16 too, as `bf16_…`, and that over BentoML's own bf16, as `bf16_vs_bentoml_bf16`.
    """
    rounds, entrants = result["rounds"], result["entrants"]

    def best(family: str, precision: str) -> str | None:
        rivals = [name for name in rounds[0] if _is(entrants[name], family, precision)]
        return max(rivals, key=lambda name: statistics.median(one[name]["rate"] for one in rounds), default=None)

    figures = {}
    for precision, prefix in (("fp32", ""), ("bf16", "bf16_")):
        mine = best("ours", precision)
        for key, family in RATIOS.items():
            figures[f"{prefix}{key}"] = (mine, best(family, "fp32"))
            if precision == "bf16":
                figures[f"{prefix}{key}_bf16"] = (mine, best(family, "bf16"))
    found = {key: _over(rounds, mine, its) for key, (mine, its) in figures.items() if mine and its}
    return {key: runs for key, runs in found.items() if runs}


def _is(entrant: Mapping[str, str], family: str, precision: str) -> bool:
    return (entrant["family"], entrant["precision"]) == (family, precision)


def verdict(result: Mapping[str, Any]) -> str:
    """What is wrong: our server answered nothing, or some server gave other vectors than open_clip."""
    problems = []
    for number, one in enumerate([result["tried"], *result["rounds"]]):
        where = f"round {number}" if number else "the trials"
        for name, found in one.items():
            if result["entrants"][name]["family"] == "ours" and found["problem"]:
                problems.append(f"{name} answered nothing in {where}: {found['problem']}")
            if (found["deviation"] or 0.0) > MOST_DEVIATION * result["distance between pictures"]:
                problems.append(f"{name} gives other vectors in {where}: 1 - cosine = {found['deviation']:.1e}")
    return "; ".join(problems)


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """A bar for each server, with every round as a dot."""
    rounds = result["rounds"]
    medians = {name: statistics.median(one[name]["rate"] for one in rounds) for name in rounds[0]}
    names = sorted(medians, key=medians.__getitem__)
    bars = axes.barh(names, [medians[name] for name in names])
    axes.bar_label(bars, labels=[shown_rate(medians[name]) for name in names], padding=3)
    for position, name in enumerate(names):
        axes.plot([one[name]["rate"] for one in rounds], [position] * len(rounds), "k.", markersize=4)
    axes.set_xlabel("pictures per second")
