"""CLIP's tokenizer with open_clip's tokens, in bounded time and memory whatever strangers write.

open_clip's own takes quadratic time for a long word (a minute for somebody's base64 of 60 KB), reads a book to its end
to use 77 tokens of it, and remembers every word that it has ever seen.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import open_clip
import torch

_REMEMBERED_WORDS = 65_536
_REMEMBERED_CHARS = 64
# A token has at most a few dozen characters, and what lies thousands of them further on cannot change it.
_CHARS_PER_TOKEN = 256


class ClipTokenizer(open_clip.SimpleTokenizer):  # type: ignore[misc]
    """See the module. Safe to call from several threads."""

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Tokens of each text between a start and an end token.

        Args:
            texts: one or several.
            context_length: tokens of a row; None is the tokenizer's own.

        Returns:
            int64, shape (number of texts, context length), padded with zeros, cut off at the end.
        """
        length = context_length or self.context_length
        if self.reduction_fn is not None:
            rows: torch.Tensor = super().__call__(texts, context_length)
            return rows
        texts = [texts] if isinstance(texts, str) else texts
        result = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(result, texts, strict=True):
            tokens = [self.sot_token_id, *self._first(text, length - 1), self.eot_token_id][:length]
            if len(tokens) == length:
                tokens[-1] = self.eot_token_id
            row[: len(tokens)] = torch.tensor(tokens)
        return result

    def _first(self, text: str, count: int) -> list[int]:
        """The first `count` tokens of a text, or a few more."""
        tokens: list[int] = []
        for match in self.pat.finditer(self.clean_fn(text)):
            if len(tokens) >= count:
                break
            word = match[0][: _CHARS_PER_TOKEN * max(count, 1)]
            letters = "".join(self.byte_encoder[byte] for byte in word.encode())
            tokens.extend(self.encoder[part] for part in self.bpe(letters).split(" "))
        return tokens

    def bpe(self, token: str) -> str:
        """The parts of a word, with spaces between them."""
        known: str | None = self.cache.get(token)
        if known is not None:
            return known
        parts = " ".join(merged([*token[:-1], token[-1] + "</w>"], self.bpe_ranks))
        if len(token) <= _REMEMBERED_CHARS and len(self.cache) < _REMEMBERED_WORDS:
            self.cache[token] = parts
        return parts


def merged(symbols: list[Any], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte pair encoding: joins the neighbours of the lowest rank, everywhere from left to right, until none is left.

    In n log n steps: a heap of all neighbours with a rank, and links from each symbol to the next.

    Args:
        symbols: of one word.
        ranks: pairs that may be joined; the lower, the sooner.
    """
    count = len(symbols)
    after, before = list(range(1, count + 1)), list(range(-1, count - 1))

    def ranked(left: int) -> tuple[int, int] | None:
        if left < 0 or after[left] >= count:
            return None
        rank = ranks.get((symbols[left], symbols[after[left]]))
        return None if rank is None else (rank, left)

    heap = [pair for left in range(count) if (pair := ranked(left))]
    heapq.heapify(heap)
    while heap:
        rank = heap[0][0]
        # All pairs of this rank before any new one, even of a lower rank: that is the order of the original.
        places = []
        while heap and heap[0][0] == rank:
            places.append(heapq.heappop(heap)[1])
        changed = []
        for left in places:
            if symbols[left] is None or ranked(left) != (rank, left):
                continue
            right = after[left]
            symbols[left], symbols[right] = symbols[left] + symbols[right], None
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
            changed.append(left)
        for left in changed:
            for place in (before[left], left):
                if pair := ranked(place):
                    heapq.heappush(heap, pair)
    return [symbol for symbol in symbols if symbol is not None]
