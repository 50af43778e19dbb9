"""Metrics of an encoder: its models and its batches."""

from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial

from deployments.metrics import Exporter
from embedding import series
from embedding.meter import Gauge, Labels, Meter
from embedding.models.cache_entry import CacheStats

LANES = {"image": series.Lane.IMAGE, "text": series.Lane.TEXT}
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
    """Tells an encoder's numbers to Ray.

    Args:
        meter: of this replica.
        stats: gives the counters of the model cache.
    """

    def __init__(self, meter: Meter, stats: Callable[[], CacheStats]) -> None:
        super().__init__(meter, INSTRUMENTS)
        for name, gauge in MODELS.items():
            meter.watch(gauge, partial(_one, stats, name))


def _one(stats: Callable[[], CacheStats], name: str) -> dict[Labels, float]:
    return {(): asdict(stats())[name]}
