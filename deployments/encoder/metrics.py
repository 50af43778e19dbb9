"""Metrics of an encoder: its models and its batches."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields

from deployments.metrics import Exporter
from embedding import series
from embedding.batching import DeviceQueue
from embedding.meter import Gauge, Labels, Meter, Readings
from embedding.models.cache_entry import CacheStats
from embedding.models.cache_metrics import kind_of

WAITING = {"image": series.Waiting.DEVICE_IMAGE, "text": series.Waiting.DEVICE_TEXT}
MODELS = {
    field.name: Gauge(f"marqo_models_{field.name}", f"Models of an encoder: {field.name}")
    for field in fields(CacheStats)
}
"""`marqo_models_*`: see `CacheStats`."""
INSTRUMENTS = (
    *MODELS.values(),
    series.BATCH_ITEMS,
    series.STAGE_SECONDS,
    series.WAITING,
    series.BUSY_SECONDS,
    series.WORKERS,
    series.ERRORS,
    series.MODEL_BYTES,
    series.MODEL_LOADS,
    series.MODEL_EVICTIONS,
)


class EncoderMetrics(Exporter):
    """Counts an encoder's batches, and tells all of its numbers to Ray.

    Args:
        meter: of this replica.
        stats: gives the counters of the model cache.
    """

    def __init__(self, meter: Meter, stats: Callable[[], CacheStats]) -> None:
        super().__init__(meter, INSTRUMENTS)
        self._meter = meter

        def now() -> Readings:
            counted = asdict(stats())
            models: dict[Gauge, dict[Labels, float]] = {gauge: {(): counted[name]} for name, gauge in MODELS.items()}
            # One, though a CPU has two queues: a single one that is always busy is a device without time to spare.
            return {**models, series.WORKERS: {(series.Workers.DEVICE,): 1}}

        meter.watch(now)

    def watch(self, queues: Iterable[DeviceQueue]) -> None:
        """Counts what waits in these queues."""

        def waiting() -> Readings:
            items = sum((queue.waiting() for queue in set(queues)), Counter())
            return {series.WAITING: {(what,): items[lane] for lane, what in WAITING.items()}}

        self._meter.watch(waiting)

    def batch(self, lane: str, waited: Sequence[float], ran: float) -> None:
        """A batch has run; see `DeviceQueue`."""
        for seconds in waited:
            self._meter.observe(series.STAGE_SECONDS, seconds, series.Stage.DEVICE_WAIT, series.Lane(lane))
        self._meter.observe(series.STAGE_SECONDS, ran, series.Stage.FORWARD, series.Lane(lane))
        self._meter.add(series.BUSY_SECONDS, ran, series.Workers.DEVICE)

    def forward_pass(self, lane: str, items: int) -> None:
        """A forward pass over so many pictures or texts has ended."""
        self._meter.observe(series.BATCH_ITEMS, items, series.Lane(lane))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Counts an error that is raised in the context."""
        try:
            yield
        except Exception as error:
            self._meter.add(series.ERRORS, 1, series.ErrorStage.FORWARD, kind_of(error))
            raise
