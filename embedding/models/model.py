"""The interface of every loaded model, whatever library runs it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from embedding.models.spec import ModelInfo

Rows = npt.NDArray[np.float32]
"""Vectors, shape (n, dimensions), as the model computes them: not normalised."""
Pixels = npt.NDArray[np.uint8]
"""Preprocessed pictures, shape (n, 3, height, width)."""


class Model(Protocol):
    """A loaded model. Its methods block: call them outside the event loop. On a CPU, several threads may encode."""

    info: ModelInfo

    @property
    def tokenize_executor(self) -> Executor | None:
        """The executor in which `tokenize` must run, since it may be slow; None if it is fast for every text."""

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Converts texts to what `encode_texts` takes; safe to run while another thread encodes."""

    def encode_texts(self, tokens: Sequence[Any]) -> Rows:
        """Encodes several results of `tokenize` in one forward pass: one row per text, in order."""

    def encode_images(self, pixels: Sequence[Pixels]) -> Rows:
        """Encodes several arrays of preprocessed pictures in one forward pass: one row per picture, in order."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines its vectors, 32 hex digits; blocks while all weights are read."""


def normalize(rows: Rows) -> Rows:
    """Rows divided by their L2 norm; a zero row stays zero, since a reply must never hold NaN."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms == 0, 1, norms)).astype(np.float32, copy=False)
