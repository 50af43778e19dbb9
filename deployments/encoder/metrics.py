"""What an encoder tells Ray's metrics (Prometheus): its models and its batches."""

from dataclasses import asdict, fields

from ray.serve.metrics import Gauge, Histogram

from embedding.models.cache import CacheStats

BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


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
        """Writes the counters of the model cache down."""
        for name, value in asdict(stats).items():
            self._models[name].set(value)

    def batch(self, lane: str, items: int) -> None:
        """Notes a forward pass."""
        self._batch.observe(items, tags={"lane": lane})
