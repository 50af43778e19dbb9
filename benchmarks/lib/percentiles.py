"""Percentiles of measured values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: int) -> float:
    """The `percent`-th percentile of at least two values, interpolated linearly between neighbours."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
