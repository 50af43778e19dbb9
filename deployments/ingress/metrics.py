"""Metrics of an ingress: its requests, and what is in flight, with the limits."""

import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from ray import serve
from ray.serve.exceptions import RayServeException

from deployments.ingress.admission import Admission
from deployments.ingress.calls import Answers
from deployments.ingress.retry import as_request_error
from deployments.metrics import Exporter
from embedding import series
from embedding.errors import Fault, ItemError
from embedding.meter import Gauge, Meter, Readings
from embedding.model_names import ModelNames
from embedding.protocol import ImageConfig, InferenceRequest, TextConfig


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
    series.BUSY_SECONDS,
    series.WORKERS,
)


P = ParamSpec("P")
R = TypeVar("R")
Counted = tuple[Answers, str | None]
"""What a request gets: its answers, and the fingerprint of its model if it wants it."""
MODALITIES = {ImageConfig: series.Modality.IMAGE, TextConfig: series.Modality.LANGUAGE}
FAILED = (Fault.TIMEOUT, Fault.LOST_REPLICA, Fault.INTERNAL)
"""Faults that are the server's."""


class IngressMetrics(Exporter):
    """Counts an ingress's requests, and tells all of its numbers to Ray.

    Args:
        meter: of this replica.
        admissions: what it counts in flight.
    """

    def __init__(self, meter: Meter, admissions: Sequence[Admission]) -> None:
        super().__init__(meter, INSTRUMENTS)
        self._meter = meter
        self._names = ModelNames(lambda name: meter.forget(series.MODEL_REQUESTS, name))

        def now() -> Readings:
            return {
                IN_FLIGHT: {(Held(each.what),): each.held for each in admissions},
                IN_FLIGHT_LIMIT: {(Held(each.what),): each.most for each in admissions},
                series.WORKERS: {(series.Workers.INGRESS,): 1},
            }

        meter.watch(now)
        self._counted_s = time.process_time()

    def count_cpu(self) -> None:
        """Counts the CPU time of this process as work, before the numbers are read: its event loop is one worker."""
        now = time.process_time()
        self._meter.add(series.BUSY_SECONDS, now - self._counted_s, series.Workers.INGRESS)
        self._counted_s = now

    def export(self) -> None:
        """See `Exporter`."""
        self.count_cpu()
        super().export()

    async def counted(self, request: InferenceRequest, work: Awaitable[Counted]) -> Counted:
        """The result of the work on a request, which is counted however it ends."""
        modality = MODALITIES.get(type(request.preprocessing_config), series.Modality.LANGUAGE)
        outcome = series.Outcome.CANCELLED
        start = time.perf_counter()
        try:
            answers, fingerprint = await work
            outcome = series.Outcome.OK
        except Exception as error:
            failed = as_request_error(error).fault in FAILED
            outcome = series.Outcome.FAILED if failed else series.Outcome.REFUSED
            raise
        finally:
            self._meter.add(series.REQUESTS, 1, modality, outcome)
            self._meter.observe(series.REQUEST_SECONDS, time.perf_counter() - start, modality)
        errors = sum(isinstance(answer, ItemError) for answer in answers)
        self._meter.add(series.ITEM_COUNT, errors, modality, series.ItemOutcome.ERROR)
        self._meter.add(series.ITEM_COUNT, len(answers) - errors, modality, series.ItemOutcome.VECTOR)
        # Only now: any name can be asked for, but few are those of a model.
        self._meter.add(series.MODEL_REQUESTS, 1, self._names.used(request.model_settings.model_name))
        return answers, fingerprint

    def refused(self, error: Exception) -> None:
        """Counts a request that gets an error instead of an answer."""
        self._meter.add(series.REFUSED, 1, as_request_error(error).fault)


class CountsRefusals(Protocol):
    """The deployment of the ingress."""

    def count_refusal(self, error: Exception) -> None: ...


def refusals_counted(
    method: Callable[Concatenate[Any, P], Awaitable[R]],
) -> Callable[Concatenate[Any, P], Awaitable[R]]:
    """Makes a method of the ingress count what it raises."""

    @functools.wraps(method)
    async def wrapper(self: CountsRefusals, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(self, *args, **kwargs)
        except Exception as error:
            self.count_refusal(error)
            raise

    return wrapper


def count_refusal(error: Exception) -> None:
    """Counts an HTTP request of this replica that gets an error; outside of Serve nothing is counted."""
    try:
        ingress = serve.get_replica_context().servable_object
    except RayServeException:
        return
    cast(CountsRefusals, ingress).count_refusal(error)
