"""Metrics of an ingress: its requests, and what is in flight, with the limits."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from deployments.ingress.admission import Admission
from deployments.metrics import Exporter
from embedding import series
from embedding.meter import Gauge, Labels, Meter


class Held(StrEnum):
    """What an ingress holds: the names of its `Admission`s."""

    CONTENTS = "contents"
    SEARCHES = "contents of searches"
    WAITING = "waiting contents"
    BYTES = "bytes of requests"
    EXPANDED = "bytes that requests become"


IN_FLIGHT = Gauge("marqo_in_flight", "Held by an ingress", {"what": Held})
IN_FLIGHT_LIMIT = Gauge("marqo_in_flight_limit", "Held by an ingress at most", {"what": Held})
INSTRUMENTS = (
    IN_FLIGHT,
    IN_FLIGHT_LIMIT,
    series.REQUESTS,
    series.REQUEST_SECONDS,
    series.ITEM_COUNT,
    series.MODEL_REQUESTS,
    series.REFUSED,
    series.ERRORS,
)


class IngressMetrics(Exporter):
    """Tells an ingress's numbers to Ray.

    Args:
        meter: of this replica.
        admissions: what it counts in flight.
    """

    def __init__(self, meter: Meter, admissions: Sequence[Admission]) -> None:
        super().__init__(meter, INSTRUMENTS)
        meter.watch(IN_FLIGHT, _each(admissions, lambda admission: admission.held))
        meter.watch(IN_FLIGHT_LIMIT, _each(admissions, lambda admission: admission.most))


def _each(admissions: Sequence[Admission], number: Callable[[Admission], int]) -> Callable[[], dict[Labels, float]]:
    return lambda: {(Held(admission.what),): number(admission) for admission in admissions}
