"""Counters, gauges and histograms of one process, as plain numbers: what happens is counted here, and read elsewhere.

Input: events, from any thread, each in about a microsecond. Output: `Meter.snapshot`, in plain dicts and lists.

Which series there can be is fixed by construction: an instrument names its tags, and the values that each may have.
Only names of models are open, and `embedding.model_names` bounds their number.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict

Tags = Mapping[str, type[StrEnum] | None]
"""Names of an instrument's tags, with the values of each; None for names whose number is bounded elsewhere."""
Labels = tuple[str, ...]
"""A value for each tag, in their order."""


@dataclass(frozen=True, eq=False)
class Instrument:
    """What is measured, under which name.

    Args:
        name: as in Prometheus, without Ray's prefix.
        meaning: one line.
        tags: of each of its series.
    """

    name: str
    meaning: str
    tags: Tags = field(default_factory=dict)

    def named(self, labels: Labels) -> dict[str, str]:
        """A series' tags.

        Raises:
            ValueError: there are fewer or more labels than tags, or one that its tag cannot have.
        """
        for (tag, values), label in zip(self.tags.items(), labels, strict=True):
            if values is not None and not isinstance(label, values):
                raise ValueError(f"{self.name}: {tag} cannot be {label!r}")
        return {tag: str(label) for tag, label in zip(self.tags, labels, strict=True)}


class Counter(Instrument):
    """A number that only grows."""


class Gauge(Instrument):
    """A number that is read when it is asked for."""


@dataclass(frozen=True, eq=False)
class Histogram(Instrument):
    """How often values of each size occurred.

    Args:
        bounds: the largest value of each bucket, ascending; one more bucket has all larger values.
    """

    bounds: tuple[float, ...] = ()


class Value(TypedDict):
    """A series of a counter or gauge."""

    tags: dict[str, str]
    value: float


class Distribution(TypedDict):
    """A series of a histogram: `counts` has a number for each bucket, not cumulative; the last is beyond all bounds."""

    tags: dict[str, str]
    bounds: list[float]
    counts: list[int]
    sum: float
    count: int


class Snapshot(TypedDict):
    """All series of a meter by the name of their instrument."""

    counters: dict[str, list[Value]]
    gauges: dict[str, list[Value]]
    histograms: dict[str, list[Distribution]]


class _Buckets:
    __slots__ = ("counts", "sum")

    def __init__(self, bounds: int) -> None:
        self.counts = [0] * (bounds + 1)
        self.sum = 0.0


Readings = Mapping["Gauge", Mapping[Labels, float]]
"""Values of gauges, by their labels."""
Read = Callable[[], Readings]


class Meter:
    """The numbers of one process. Thread-safe, but the functions that read gauges run in the thread that asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[Counter, dict[Labels, float]] = {}
        self._histograms: dict[Histogram, dict[Labels, _Buckets]] = {}
        self._reads: list[Read] = []

    def add(self, counter: Counter, amount: float, *labels: str) -> None:
        """Adds to a counter. A series begins with its first amount above 0.

        Args:
            counter: the instrument.
            amount: at least 0.
            labels: a value for each of its tags.
        """
        if not amount:
            return
        with self._lock:
            try:
                self._counters[counter][labels] += amount
            except KeyError:
                counter.named(labels)
                self._counters.setdefault(counter, {})[labels] = amount

    def observe(self, histogram: Histogram, value: float, *labels: str) -> None:
        """Counts a value in its bucket. See `add`."""
        bucket = bisect_left(histogram.bounds, value)
        with self._lock:
            try:
                buckets = self._histograms[histogram][labels]
            except KeyError:
                histogram.named(labels)
                buckets = _Buckets(len(histogram.bounds))
                self._histograms.setdefault(histogram, {})[labels] = buckets
            buckets.counts[bucket] += 1
            buckets.sum += value

    @contextmanager
    def timed(self, histogram: Histogram, *labels: str) -> Iterator[None]:
        """Observes the seconds that the context takes, however it ends."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.observe(histogram, time.perf_counter() - start, *labels)

    def watch(self, read: Read) -> None:
        """Has gauges read by `read` whenever the numbers are asked for. A gauge may be read by several functions, each
        for labels of its own."""
        self._reads.append(read)

    def forget(self, counter: Counter, *labels: str) -> None:
        """Removes a series, which begins at 0 if it comes back."""
        with self._lock:
            self._counters.get(counter, {}).pop(labels, None)

    def snapshot(self) -> Snapshot:
        """All numbers now. Call it where the gauges may be read: on the event loop of what they tell."""
        gauges: dict[str, list[Value]] = {}
        for read in self._reads:
            for gauge, values in read().items():
                gauges.setdefault(gauge.name, []).extend(_values(gauge, values.items()))
        with self._lock:
            counters = {counter.name: _values(counter, series.items()) for counter, series in self._counters.items()}
            histograms = {
                histogram.name: [_distribution(histogram, *one) for one in series.items()]
                for histogram, series in self._histograms.items()
            }
        return {"counters": counters, "gauges": gauges, "histograms": histograms}


def _values(instrument: Instrument, series: Iterable[tuple[Labels, float]]) -> list[Value]:
    return [{"tags": instrument.named(labels), "value": float(value)} for labels, value in series]


def _distribution(histogram: Histogram, labels: Labels, buckets: _Buckets) -> Distribution:
    return {
        "tags": histogram.named(labels),
        "bounds": list(histogram.bounds),
        "counts": list(buckets.counts),
        "sum": buckets.sum,
        "count": sum(buckets.counts),
    }
