"""A replica's numbers, told to Ray's metrics, which Prometheus reads.

Ray gets them every `METRICS_PERIOD_S`, and not at each event. A histogram of Ray's own would take four microseconds for
each value and more in its node's agent, and its sums would be wrong, since the agent takes each value for the middle of
its bucket (docs/decisions/055-metrics.md). So the buckets are told as gauges, under the names of a histogram's parts.
"""

import asyncio
import logging
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from ray.serve import metrics

from deployments.replica import METRICS_PERIOD_S
from embedding.meter import Counter, Gauge, Histogram, Instrument, Meter

logger = logging.getLogger("ray.serve")

Told = dict[tuple[str, tuple[str, ...]], float]
"""Values of counters that Ray has been told, by name and values of the tags. Of those that there are now only: series
of models come and go."""
LE = "le"
"""Prometheus's tag of a bucket: the largest value in it."""


class Exporter:
    """Tells the numbers of a meter to Ray.

    Args:
        meter: the numbers of this replica.
        instruments: all that it may have.
    """

    def __init__(self, meter: Meter, instruments: Iterable[Instrument]) -> None:
        self._meter = meter
        self._told: Told = {}
        self._counters: dict[str, metrics.Counter] = {}
        self._gauges: dict[str, metrics.Gauge] = {}
        for instrument in instruments:
            self._add(instrument)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Exports from now on, on the running event loop; nothing if it does so already."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def export(self) -> None:
        """Tells all numbers to Ray now."""
        snapshot = self._meter.snapshot()
        before, self._told = self._told, {}
        for name, values in snapshot["counters"].items():
            for value in values:
                self._count(name, value["tags"], value["value"], before)
        for name, values in snapshot["gauges"].items():
            for value in values:
                self._gauges[name].set(value["value"], tags=value["tags"])
        for name, distributions in snapshot["histograms"].items():
            for one in distributions:
                self._buckets(name, one)

    async def _run(self) -> None:
        while True:
            try:
                self.export()
            except Exception:
                # A number that cannot be read must not end the others, nor the replica.
                logger.exception("metrics were not exported")
            await asyncio.sleep(METRICS_PERIOD_S)

    def _add(self, instrument: Instrument) -> None:
        name, meaning = instrument.name, instrument.meaning
        # Ray's annotation is that of a tuple with one element.
        tags: Any = tuple(instrument.tags)
        if isinstance(instrument, Counter):
            self._counters[name] = metrics.Counter(name, meaning, tags)
        elif isinstance(instrument, Gauge):
            self._gauges[name] = metrics.Gauge(name, meaning, tags)
        elif isinstance(instrument, Histogram):
            self._gauges[f"{name}_bucket"] = metrics.Gauge(f"{name}_bucket", meaning, (*tags, LE))
            for part in ("sum", "count"):
                self._gauges[f"{name}_{part}"] = metrics.Gauge(f"{name}_{part}", meaning, tags)

    def _count(self, name: str, tags: dict[str, str], value: float, before: Told) -> None:
        key = (name, tuple(tags.values()))
        told = before.get(key, 0.0)
        # A series that was forgotten begins again.
        added = value - told if value >= told else value
        if added > 0:
            self._counters[name].inc(added, tags=tags)
        self._told[key] = value

    def _buckets(self, name: str, one: Any) -> None:
        bounds = [*map(str, one["bounds"]), "+Inf"]
        for bound, count in zip(bounds, accumulate(one["counts"]), strict=True):
            self._gauges[f"{name}_bucket"].set(count, tags={**one["tags"], LE: bound})
        for part in ("sum", "count"):
            self._gauges[f"{name}_{part}"].set(one[part], tags=one["tags"])
