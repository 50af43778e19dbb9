"""What has happened between two collections of the replicas' statistics: rates, times and what waits.

Counters and histograms count from the start of their replica. A replica that has started in between counts from zero;
one that has ended is left out, and so is one that was there but did not answer at first, whose earlier counts are not
known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments.replica_stats import ReplicaStats

Tags = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Replica:
    """Where statistics come from, or should have come from."""

    deployment: str
    replica: str
    node: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a deployment's options say.

    Args:
        replicas: the most there may be; None if not known.
        autoscaled: whether Serve chooses their number.
        user_config: empty if there is none.
    """

    replicas: int | None
    autoscaled: bool
    user_config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Collection:
    """What the replicas said at one moment.

    Args:
        at: seconds, by a monotonic clock.
        answers: statistics of each replica that answered.
        silent: replicas that did not answer in time.
        limits: of each deployment, where they are known.
    """

    at: float
    answers: Sequence[ReplicaStats]
    silent: Sequence[Replica] = ()
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def answers_of(self, deployment: str) -> list[ReplicaStats]:
        """The replicas of a deployment that answered."""
        return [one for one in self.answers if one.deployment == deployment]

    def silent_of(self, deployment: str) -> list[Replica]:
        """Those that did not."""
        return [one for one in self.silent if one.deployment == deployment]


@dataclass(frozen=True, slots=True)
class Times:
    """Durations of one kind, in seconds.

    Args:
        count: how many there were.
        total: their sum.
        median, high: the values below which half and 95 % of them are, interpolated within a histogram's bucket; of
            durations beyond its last bound, that bound. None if there were none.
    """

    count: float = 0.0
    total: float = 0.0
    median: float | None = None
    high: float | None = None


class Growth:
    """The differences between two collections.

    Args:
        before, after: the collections, in this order.

    Attributes:
        seconds: between them.
        after: the later one.
    """

    def __init__(self, before: Collection, after: Collection) -> None:
        self.seconds = max(0.0, after.at - before.at)
        self.after = after
        self._before: dict[str, Any] = {one.replica: one.snapshot for one in before.answers}
        self._clocks = {one.replica: one.clock_s for one in before.answers}
        self._unknown = {one.replica for one in before.silent} - set(self._before)

    def count(self, name: str, **tags: str) -> float:
        """How much the counters of a name with these tags have grown together."""
        return sum(grown for _, _, _, grown in self._counters(name, tags))

    def rate(self, name: str, **tags: str) -> float:
        """The same in a second."""
        return self.count(name, **tags) / self.seconds if self.seconds else 0.0

    def counts(self, name: str) -> list[tuple[Tags, float, float]]:
        """Each combination of tags of a counter: the tags, what was counted in between, and since the replicas'
        start."""
        found: dict[tuple[tuple[str, str], ...], tuple[float, float]] = {}
        for _, tags, now, grown in self._counters(name, {}):
            key = tuple(sorted(tags.items()))
            recent, total = found.get(key, (0.0, 0.0))
            found[key] = (recent + grown, total + now)
        return [(dict(key), *counts) for key, counts in sorted(found.items())]

    def gauge(self, name: str, **tags: str) -> float | None:
        """The sum of the gauges of a name with these tags, now; None if no replica has one."""
        values = [one["value"] for _, one in self._series("gauges", name, tags)]
        return sum(values) if values else None

    def gauges_by(self, name: str, tag: str) -> list[tuple[str, float]]:
        """The sum of the gauges of a name for each value of a tag, in the order of the values."""
        found: dict[str, float] = {}
        for _, one in self._series("gauges", name, {}):
            value = one["tags"].get(tag, "")
            found[value] = found.get(value, 0.0) + one["value"]
        return sorted(found.items())

    def gained(self, name: str) -> float:
        """How much the gauges of a name that count since the start have grown together."""
        found = 0.0
        for replica, one in self._series("gauges", name, {}):
            if replica.replica in self._unknown:
                continue
            earlier = self._earlier("gauges", replica, name, one)
            found += max(0.0, one["value"] - (earlier["value"] if earlier else 0.0))
        return found

    def utilisation(self, what: str) -> float | None:
        """The part of the time in which the workers of a kind were at work, from 0 to 1, over all replicas."""
        busy_s: dict[str, float] = {}
        for replica, _, _, grown in self._counters("marqo_busy_seconds", {"what": what}):
            busy_s[replica.replica] = grown
        workers = busy = 0.0
        for replica, one in self._series("gauges", "marqo_workers", {"what": what}):
            seconds = self._seconds_of(replica)
            if seconds > 0 and replica.replica not in self._unknown:
                workers += one["value"]
                busy += busy_s.get(replica.replica, 0.0) / seconds
        return min(1.0, busy / workers) if workers else None

    def times(self, name: str, **tags: str) -> Times:
        """The durations that the histograms of a name with these tags have counted in between."""
        bounds: Sequence[float] = ()
        counts: list[float] = []
        count = total = 0.0
        for replica, one in self._series("histograms", name, tags):
            if not bounds:
                bounds, counts = one["bounds"], [0.0] * len(one["counts"])
            if one["bounds"] != bounds:
                continue  # of another version, during an update
            earlier = self._earlier("histograms", replica, name, one)
            if earlier is None or earlier["bounds"] != bounds or earlier["count"] > one["count"]:
                earlier = {"counts": [0.0] * len(counts), "count": 0, "sum": 0.0}
            counts = [sum_ + now - was for sum_, now, was in zip(counts, one["counts"], earlier["counts"], strict=True)]
            count += one["count"] - earlier["count"]
            total += one["sum"] - earlier["sum"]
        return Times(count, total, quantile(bounds, counts, 0.5), quantile(bounds, counts, 0.95))

    def models(self) -> Iterator[tuple[ReplicaStats, str, float]]:
        """Each loaded model of each replica: the replica, the model's name, bytes of its weights."""
        for replica, one in self._series("gauges", "marqo_model_bytes", {}):
            yield replica, one["tags"].get("model", ""), one["value"]

    def _seconds_of(self, replica: ReplicaStats) -> float:
        """The time between two answers of a replica, by its own clock: a busy one may have answered late."""
        before = self._clocks.get(replica.replica)
        return self.seconds if before is None else replica.clock_s - before

    def _counters(self, name: str, tags: Tags) -> Iterator[tuple[ReplicaStats, Tags, float, float]]:
        for replica, one in self._series("counters", name, tags):
            earlier = self._earlier("counters", replica, name, one)
            was = earlier["value"] if earlier else 0.0
            # A count that is less than before has begun anew.
            yield replica, one["tags"], one["value"], one["value"] - was if one["value"] >= was else one["value"]

    def _series(self, kind: str, name: str, tags: Tags) -> Iterator[tuple[ReplicaStats, Any]]:
        """Series with the wanted tags, of replicas whose earlier counts are known."""
        for replica in self.after.answers:
            if kind != "gauges" and replica.replica in self._unknown:
                continue
            snapshot: Any = replica.snapshot
            for one in snapshot[kind].get(name, ()):
                if tags.items() <= one["tags"].items():
                    yield replica, one

    def _earlier(self, kind: str, replica: ReplicaStats, name: str, series: Any) -> Any:
        before: Iterable[Any] = self._before.get(replica.replica, {}).get(kind, {}).get(name, ())
        return next((one for one in before if one["tags"] == series["tags"]), None)


def quantile(bounds: Sequence[float], counts: Sequence[float], part: float) -> float | None:
    """The value below which a part of a histogram's values are.

    Args:
        bounds: upper bounds of the buckets, ascending; the last bucket has none.
        counts: of each bucket, not cumulative: `len(bounds) + 1` of them.
        part: from 0 to 1.
    """
    wanted = sum(counts) * part
    if not wanted:
        return None
    low = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and wanted <= count:
            return low + (bound - low) * wanted / count
        wanted -= count
        low = bound
    return low
