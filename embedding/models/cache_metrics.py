"""The model cache in numbers: loads, what waits for them, and the memory of each model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from embedding import series
from embedding.errors import ErrorKind, Fault, RequestError
from embedding.meter import Meter, Readings
from embedding.model_names import ModelNames, largest
from embedding.models.cache_entry import Entry
from embedding.models.files.failure import is_out_of_memory
from embedding.models.files.load_time import LoadTime

_FAULTS = {Fault.REFUSED: ErrorKind.REFUSED, Fault.OVERLOADED: ErrorKind.BUSY}


def kind_of(error: BaseException) -> ErrorKind:
    """The kind of an error of a load or a forward pass."""
    if is_out_of_memory(error):
        return ErrorKind.OUT_OF_MEMORY
    return _FAULTS.get(error.fault, ErrorKind.INTERNAL) if isinstance(error, RequestError) else ErrorKind.INTERNAL


class CacheMetrics:
    """Counts what a model cache does.

    Args:
        meter: where it is counted.
        entries: gives the models that are loaded or being loaded.
    """

    def __init__(self, meter: Meter, entries: Callable[[], Iterable[Entry]]) -> None:
        self._meter = meter
        self._names = ModelNames(self._forget)

        def now() -> Readings:
            loads = sum(entry.users for entry in entries() if entry.model is None)
            sizes = largest((entry.spec.name, entry.nbytes) for entry in entries() if entry.model is not None)
            return {series.MODEL_BYTES: sizes, series.WAITING: {(series.Waiting.LOAD,): loads}}

        meter.watch(now)

    def loaded(self, name: str, clock: LoadTime) -> None:
        """A model has been loaded."""
        elapsed_s = clock.elapsed_s
        self._meter.add(series.MODEL_LOADS, 1, self._names.used(name))
        self._meter.observe(series.STAGE_SECONDS, clock.waited_s, series.Stage.LOAD_WAIT, series.Lane.ANY)
        self._meter.observe(series.STAGE_SECONDS, elapsed_s - clock.waited_s, series.Stage.LOAD, series.Lane.ANY)

    def failed(self, error: BaseException) -> None:
        """A load has failed."""
        self._meter.add(series.ERRORS, 1, series.ErrorStage.LOAD, kind_of(error))

    def evicted(self, name: str) -> None:
        """A model has been evicted."""
        self._meter.add(series.MODEL_EVICTIONS, 1, self._names.known(name))

    def _forget(self, name: str) -> None:
        for counter in (series.MODEL_LOADS, series.MODEL_EVICTIONS):
            self._meter.forget(counter, name)
