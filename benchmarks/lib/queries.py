"""The texts that benchmarks search for."""

from __future__ import annotations


def queries(count: int) -> list[str]:
    """So many different texts of equal length in tokens, the same in every run."""
    return [f"a photo of a red bicycle leaning against a wall, number {number}" for number in range(count)]
