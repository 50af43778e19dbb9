"""What every loaded model can do, whatever library owns it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedding.models.spec import ModelInfo

Rows = npt.NDArray[np.float32]
"""Vectors, shape (n, dimensions), as the model gives them: not normalised."""
Pixels = npt.NDArray[np.uint8]
"""Prepared pictures, shape (n, 3, height, width)."""


class Model(Protocol):
    """A loaded model. Its methods block: call them off the event loop. On a CPU, any number of threads may encode."""

    info: ModelInfo

    @property
    def tokenizing(self) -> Executor | None:
        """Where `tokenize` has to run, since it may take its time; None for one that is quick whatever the texts."""

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Texts to what `encode_texts` takes; safe to run while another thread encodes."""

    def encode_texts(self, tokens: Sequence[Any]) -> Rows:
        """Several results of `tokenize`, in one forward pass, to one row per text, in order."""

    def encode_images(self, pixels: Sequence[Pixels]) -> Rows:
        """Several arrays of prepared pictures, in one forward pass, to one row per picture, in order."""

    @property
    def fingerprint(self) -> str:
        """What decides its vectors, as 32 hex digits; blocks for as long as all weights take to read."""


def normalize(rows: Rows) -> Rows:
    """Rows divided by their L2 norm; a zero row stays zero, since a reply must never hold NaN."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms == 0, 1, norms)).astype(np.float32, copy=False)
