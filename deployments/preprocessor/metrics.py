"""Metrics of a preprocessor: its downloads and its decoders."""

from deployments.metrics import Exporter
from embedding import series
from embedding.meter import Meter

INSTRUMENTS = (
    series.STAGE_SECONDS,
    series.WAITING,
    series.BUSY_SECONDS,
    series.WORKERS,
    series.ERRORS,
    series.DOWNLOAD_BYTES,
    series.DOWNLOADS_ACTIVE,
    series.HOSTS_LIMITED,
    series.BREAKERS_OPEN,
)


class PreprocessorMetrics(Exporter):
    """Tells a preprocessor's numbers to Ray.

    Args:
        meter: of this replica.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__(meter, INSTRUMENTS)
