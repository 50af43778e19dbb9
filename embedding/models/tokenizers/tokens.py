"""Tokens of transformers text models: each request is tokenised separately, and padded when it joins a batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from embedding.errors import Fault, RequestError
from embedding.models.tokenizers.process import TokenizerProcess

Tokens = list[dict[str, list[int]]]
"""One map for each text, from the name of an input (`input_ids`, …) to its values, not padded."""
Padded = dict[str, npt.NDArray[np.int64]]
"""One array for each input, shape (texts, longest text)."""


class TextTokenizer:
    """A transformers tokenizer whose results can be merged into one batch.

    Args:
        process: the tokenizer.
        limit: tokens after which a text is cut off, special ones included.
        vocabulary: rows of the model's embedding table; 0 if unknown.
    """

    def __init__(self, process: TokenizerProcess, limit: int, vocabulary: int = 0) -> None:
        facts = process.facts
        if facts["pad_token_id"] is None:
            raise ValueError("its tokenizer has no padding token")
        self._process = process
        self._limit = limit
        self._vocabulary = vocabulary
        self._left = facts["padding_side"] == "left"
        self._padding = {
            "input_ids": facts["pad_token_id"],
            "token_type_ids": facts["pad_token_type_id"] or 0,
            "attention_mask": 0,
        }

    @property
    def thread(self) -> Executor:
        """The executor in which calls must run."""
        return self._process.thread

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """The tokens of each text. Thread-safe.

        Raises:
            RequestError: REFUSED, see `TokenizerProcess`.
        """
        if not texts:
            return []
        encoded = self._process(texts, self._limit, "text")
        return [{name: values[i] for name, values in encoded.items()} for i in range(len(texts))]

    def merge(self, parts: Sequence[Tokens]) -> Padded:
        """Merges several results into one batch, every text padded to the longest.

        Raises:
            RequestError: REFUSED, for a token that the model has no embedding for.
        """
        rows = [row for part in parts for row in part]
        longest = max(len(row["input_ids"]) for row in rows)
        merged: Padded = {}
        for name in rows[0]:
            merged[name] = np.full((len(rows), longest), self._padding.get(name, 0), np.int64)
            for target, row in zip(merged[name], rows, strict=True):
                values = row[name]
                target[longest - len(values) if self._left else 0 :][: len(values)] = values
        self._check(merged["input_ids"])
        return merged

    def facts(self) -> dict[str, object]:
        """What determines the tokens of a text, for a fingerprint."""
        return {"limit": self._limit, "tokens": self(["The quick brown fox, 42 °C – fingerprint"])}

    def _check(self, ids: npt.NDArray[np.int64]) -> None:
        # On a GPU a token beyond the embedding table would crash the whole process, not only fail this request.
        if self._vocabulary and ids.size and int(ids.max()) >= self._vocabulary:
            raise RequestError(
                Fault.REFUSED,
                f"the model's tokenizer gives token {ids.max()}, but the model knows only {self._vocabulary} tokens",
            )
