"""What replicas tell Ray's metrics (Prometheus): an ingress what is in flight, an encoder its models and batches."""

from collections.abc import Iterable
from dataclasses import asdict, fields

from ray.serve.metrics import Gauge, Histogram

from deployments.admission import Admission
from embedding.models.cache import CacheStats

PERIOD_S = 10.0
BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


class IngressMetrics:
    """`marqo_in_flight`: what an ingress holds, and `marqo_in_flight_limit`: beyond which it refuses; by what."""

    def __init__(self) -> None:
        self._held = Gauge("marqo_in_flight", description="Held by an ingress", tag_keys=("what",))
        self._most = Gauge("marqo_in_flight_limit", description="Held by an ingress at most", tag_keys=("what",))

    def in_flight(self, admissions: Iterable[Admission]) -> None:
        """Writes down what is held now."""
        for admission in admissions:
            self._held.set(admission.held, tags={"what": admission.what})
            self._most.set(admission.most, tags={"what": admission.what})


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
