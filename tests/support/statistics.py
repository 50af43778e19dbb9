"""Replicas' statistics as they answer with them, written short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.ingress.growth import Collection
from deployments.replica_stats import ReplicaStats

BOUNDS = [0.01, 0.1, 1.0]
Tags = Mapping[str, str]


def value(number: float, **tags: str) -> dict[str, Any]:
    """A series of a counter or gauge."""
    return {"tags": tags, "value": float(number)}


def distribution(counts: Sequence[int], total: float, **tags: str) -> dict[str, Any]:
    """A series of a histogram: a number for each bucket of `BOUNDS`, and one for what is beyond."""
    return {"tags": tags, "bounds": BOUNDS, "counts": list(counts), "sum": total, "count": sum(counts)}


def replica(
    name: str,
    deployment: str = "Encoder",
    clock_s: float = 0.0,
    counters: Mapping[str, Any] | None = None,
    gauges: Mapping[str, Any] | None = None,
    histograms: Mapping[str, Any] | None = None,
) -> ReplicaStats:
    snapshot: Any = {"counters": counters or {}, "gauges": gauges or {}, "histograms": histograms or {}}
    return ReplicaStats(deployment, name, "node", clock_s, snapshot)


def collected(at: float, *answers: ReplicaStats, **others: Any) -> Collection:
    return Collection(at, answers, **others)
