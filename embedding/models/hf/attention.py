"""Splits batches of long texts, whose attention would take too much memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embedding.models.model import Rows
from embedding.models.tokenizers.tokens import Tokens

MAX_BYTES = 2**30
"""Limit for the attention scores of one layer: each token with each other, for each head, as float32."""
_SCORE_BYTES = 4


def encode_in_batches(parts: Sequence[Tokens], heads: int, encode: Callable[[Sequence[Tokens]], Rows]) -> Rows:
    """Encodes texts in as few forward passes as memory allows: one row per text, in order.

    A single text is always encoded, even if it exceeds the limit.

    Args:
        parts: the tokens of texts.
        heads: attention heads of the model.
        encode: runs one forward pass.
    """
    texts = [text for part in parts for text in part]
    longest = max((len(text["input_ids"]) for text in texts), default=0)
    if _scores(len(texts), longest, heads) <= MAX_BYTES:
        return encode(parts)
    # Sorted by length, so that a long text pads as few others as possible.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]["input_ids"]))
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and _scores(len(batches[-1]) + 1, len(texts[i]["input_ids"]), heads) > MAX_BYTES:
            batches.append([])
        batches[-1].append(i)
    rows = np.concatenate([encode([[texts[i] for i in batch]]) for batch in batches])
    return rows[np.argsort(order)]


def _scores(texts: int, tokens: int, heads: int) -> int:
    return _SCORE_BYTES * texts * heads * tokens * tokens
