"""What became of an offered load: goodput, latencies and recovery, computed from the outcomes of its requests."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.lib.offered import Outcome
from benchmarks.lib.watch import Sample, total

AIM = 0.9
"""Share of the sustainable rate below which a window of goodput counts as low."""
WINDOW_S, LONG_WINDOW_S = 5.0, 30.0
"""Goodput is counted in windows of these lengths. The first second of a phase is left out: it still has the answers to
requests of the phase before."""
RECOVERED_S = 3.0
SLOWER = 1.5
"""The server has recovered when three seconds begin in which nothing is refused and the median latency of each kind is
at most this many times the median from before."""

Machine = Sequence[Mapping[str, float]]
"""What the machine did, as `at_the_time` makes it of samples."""


def at_the_time(sample: Sample, started: float) -> dict[str, float]:
    """A sample of `watching` as totals over all processes; its time in seconds since `started`."""
    return {
        "at": sample["at"] - started,
        "rss": total(sample, "rss"),
        "anonymous": total(sample, "anonymous"),
        "object bytes": sample["object bytes"],
        "objects": sample["objects"],
        "busy": sample["busy"],
        "stolen": sample["stolen"],
    }


def by_second(outcomes: Sequence[Outcome], seconds: float) -> list[int]:
    """Items that were answered rightly in each second."""
    counts = [0] * int(seconds)
    for one in outcomes:
        if one.verdict == "right" and one.done < len(counts):
            counts[int(one.done)] += one.items
    return counts


def windows(counts: Sequence[int], seconds: float = WINDOW_S) -> list[float]:
    """Mean items per second of every window of that length."""
    width = min(int(seconds), len(counts))
    return [sum(counts[i : i + width]) / width for i in range(len(counts) - width + 1)]


def digest(phase: Mapping[str, Any], sustainable: float, machine: Machine) -> dict[str, Any]:
    """The figures of one phase.

    Args:
        phase: as `offer` returns it.
        sustainable: items per second with which goodput is compared.
        machine: samples of the machine, on the clock of the phase's `started`.
    """
    outcomes: list[Outcome] = phase["outcomes"]
    started, seconds = phase["started"], phase["seconds"]
    # Requests of the phase before are answered at its start, its own last ones after its end: neither is counted.
    right = [one for one in outcomes if one.verdict == "right" and one.done <= seconds]
    counts = by_second(outcomes, seconds)
    means = windows(counts[1:])
    worst = started + 1 + means.index(min(means))
    others = [one.verdict for one in outcomes if one.verdict not in ("right", "refused")]
    return {
        "name": phase["name"],
        "started": started,
        "seconds": seconds,
        "cores": phase["cores"],
        "offered": sum(one.items for one in outcomes) / seconds / sustainable,
        "goodput": statistics.mean(counts[1:]) / sustainable,
        "worst half minute": min(windows(counts[1:], LONG_WINDOW_S)) / sustainable,
        "worst goodput": min(means) / sustainable,
        "windows below aim": statistics.mean(one < AIM * sustainable for one in means),
        "pictures per second": sum(one.items for one in right if one.kind == "pictures") / seconds,
        "searches per second": sum(one.items for one in right if one.kind == "search") / seconds,
        "refused": sum(one.verdict == "refused" for one in outcomes),
        "wrong": len(others),
        "what was wrong": sorted(set(others))[:10],
        "answered by second": counts,
        **_percentiles(outcomes),
        **_cores(machine, "", started, started + seconds),
        **_cores(machine, "worst ", worst, worst + WINDOW_S),
    }


def recovery(before: Sequence[Outcome], after: Sequence[Outcome]) -> float | None:
    """Seconds of normal load after an overload until all is as before it; None if that does not happen."""
    limits = {kind: SLOWER * statistics.median(_latencies(before, kind)) for kind in {one.kind for one in before}}
    end = max(one.due for one in after)
    tenths = 0
    while (start := tenths / 10) + RECOVERED_S <= end:
        window = [one for one in after if start <= one.due < start + RECOVERED_S]
        calm = all(one.verdict == "right" for one in window)
        # The first second of the window by itself too: three seconds would hide a slow start.
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


def _percentiles(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Latencies in seconds: of refusals, and of right answers of each kind. None where there are none."""
    latencies = {
        "refused": [one.latency for one in outcomes if one.verdict == "refused"],
        "pictures": _latencies(outcomes, "pictures"),
        "search": _latencies(outcomes, "search"),
    }
    return {
        f"{name} p{percent}": sorted(values)[len(values) * percent // 100] if values else None
        for name, values in latencies.items()
        for percent in (50, 99)
    }


def _cores(machine: Machine, prefix: str, start: float, end: float) -> dict[str, float | None]:
    """Cores that were busy, and that the machine's host gave to others, between the samples of a span."""
    inside = [one for one in machine if start <= one["at"] <= end]
    if len(inside) < 2:
        return {f"{prefix}busy": None, f"{prefix}stolen": None}
    seconds = inside[-1]["at"] - inside[0]["at"]
    return {f"{prefix}{name}": (inside[-1][name] - inside[0][name]) / seconds for name in ("busy", "stolen")}
