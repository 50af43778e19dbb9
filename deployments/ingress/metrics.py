"""Metrics of an ingress for Ray and Prometheus: what is in flight, and the limits."""

from collections.abc import Iterable

from ray.serve.metrics import Gauge

from deployments.ingress.admission import Admission


class IngressMetrics:
    """`marqo_in_flight`: what an ingress holds, and `marqo_in_flight_limit`: beyond which it refuses requests. The
    tag `what` names the thing that is counted."""

    def __init__(self) -> None:
        self._held = Gauge("marqo_in_flight", description="Held by an ingress", tag_keys=("what",))
        self._most = Gauge("marqo_in_flight_limit", description="Held by an ingress at most", tag_keys=("what",))

    def in_flight(self, admissions: Iterable[Admission]) -> None:
        """Records what is held now."""
        for admission in admissions:
            self._held.set(admission.held, tags={"what": admission.what})
            self._most.set(admission.most, tags={"what": admission.what})
