"""How far vectors are from the right ones."""

from __future__ import annotations

import numpy as np


def deviation(vectors: np.ndarray, expected: np.ndarray) -> float:
    """The largest 1 - cosine between vectors and the right ones, in order: of float32 (n, dimensions).

    Raises:
        ValueError: their shapes differ, or a vector is zero or not finite.
    """
    if vectors.shape != expected.shape:
        raise ValueError(f"vectors of shape {vectors.shape} instead of {expected.shape}")
    exact, right = vectors.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(right, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("a vector is zero or not finite")
    cosines = (exact * right).sum(1) / lengths
    return max(0.0, float(1 - cosines.min()))
