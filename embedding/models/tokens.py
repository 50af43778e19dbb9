"""Tokens of transformers text models: made for each request alone, padded when requests share a batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedding.errors import Fault, RequestError

Tokens = list[dict[str, list[int]]]
"""One map for each text, from the name of an input (`input_ids`, …) to its values, not padded."""
Padded = dict[str, npt.NDArray[np.int64]]
"""One array for each input, shape (texts, longest text)."""


class TextTokenizer:
    """A transformers tokenizer whose results can be merged into one batch.

    Args:
        tokenizer: of transformers.
        limit: tokens after which a text is cut off, special ones included.
        vocabulary: rows of the model's embedding table; 0 if unknown.
    """

    def __init__(self, tokenizer: Any, limit: int, vocabulary: int = 0) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError("its tokenizer has no padding token")
        self._tokenizer = tokenizer
        self._limit = limit
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._padding = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
            "attention_mask": 0,
        }

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The tokens of each text."""
        if not texts:
            return []
        # A fast tokenizer keeps its settings in a cell that two threads may not borrow together.
        with self._lock:
            encoded = self._tokenizer(
                list(texts), truncation=True, max_length=self._limit, padding=False, return_attention_mask=True
            )
        return [{name: values[i] for name, values in encoded.items()} for i in range(len(texts))]

    def merge(self, parts: Sequence[Tokens]) -> Padded:
        """Several results as one batch, every text padded to the longest of all.

        Raises:
            RequestError: REFUSED, for a token that the model has no embedding for.
        """
        rows = [row for part in parts for row in part]
        longest = max(len(row["input_ids"]) for row in rows)
        left = self._tokenizer.padding_side == "left"
        merged: Padded = {}
        for name in rows[0]:
            merged[name] = np.full((len(rows), longest), self._padding.get(name, 0), np.int64)
            for target, row in zip(merged[name], rows, strict=True):
                values = row[name]
                target[longest - len(values) if left else 0 :][: len(values)] = values
        self._check(merged["input_ids"])
        return merged

    def facts(self) -> dict[str, object]:
        """What decides the tokens of a text, for a fingerprint."""
        return {"limit": self._limit, "tokens": self(["The quick brown fox, 42 °C – fingerprint"])}

    def _check(self, ids: npt.NDArray[np.int64]) -> None:
        # On a GPU such a token would end the whole process, not only this request.
        if self._vocabulary and ids.size and int(ids.max()) >= self._vocabulary:
            raise RequestError(
                Fault.REFUSED,
                f"the model's tokenizer gives token {ids.max()}, but the model knows only {self._vocabulary} tokens",
            )
