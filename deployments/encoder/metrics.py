"""Metrics of an encoder for Ray and Prometheus: its models and its batches."""

from dataclasses import asdict, fields

from ray.serve.metrics import Gauge, Histogram

from embedding.models.cache_entry import CacheStats

BATCH_SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]


class EncoderMetrics:
    """`marqo_models_*`: see `CacheStats`. `marqo_batch_items`: pictures or texts in one forward pass, by lane."""

    def __init__(self) -> None:
        self._models = {
            field.name: Gauge(f"marqo_models_{field.name}", description=f"Models of an encoder: {field.name}")
            for field in fields(CacheStats)
        }
        self._batch = Histogram(
            "marqo_batch_items", description="Items in one forward pass", boundaries=BATCH_SIZES, tag_keys=("lane",)
        )

    def models(self, stats: CacheStats) -> None:
        """Records the counters of the model cache."""
        for name, value in asdict(stats).items():
            self._models[name].set(value)

    def batch(self, lane: str, items: int) -> None:
        """Records a forward pass.

        Args:
            lane: "image" or "text".
            items: pictures or texts in it.
        """
        self._batch.observe(items, tags={"lane": lane})
