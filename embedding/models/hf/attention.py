"""Batches of long texts, cut where their attention would take too much memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embedding.models.model import Rows
from embedding.models.tokenizers.tokens import Tokens

MAX_BYTES = 2**30
"""Of the scores of one layer: every token with every other, for each head, as float32."""
_SCORE_BYTES = 4


def attended_apart(parts: Sequence[Tokens], heads: int, encode: Callable[[Sequence[Tokens]], Rows]) -> Rows:
    """One row for each text, in order, from as few forward passes as memory allows. A text alone always has one.

    Args:
        parts: tokens of texts.
        heads: of the model's attention.
        encode: one forward pass.
    """
    texts = [text for part in parts for text in part]
    longest = max((len(text["input_ids"]) for text in texts), default=0)
    if _scores(len(texts), longest, heads) <= MAX_BYTES:
        return encode(parts)
    # By length, so that a long one pads as few as may be.
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
