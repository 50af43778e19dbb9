"""A tokenizer with the same tokens as open_clip's `SimpleTokenizer`, in bounded time and memory for any text.

open_clip's own (open_clip/tokenizer.py, after https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py)

- merges a word in quadratic time: 13 s for 16,000 random letters, during which it holds the interpreter's lock;
- cleans and encodes a whole text, although only 75 of its tokens are used: 33 s for a megabyte of line feeds;
- caches every word that it has ever seen.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from open_clip.tokenizer import SimpleTokenizer, canonicalize_text, get_clean_fn, whitespace_clean

_REMEMBERED_WORDS = 65_536
# No token is longer. With 64 the cache could grow to 160 MB instead of 80.
_REMEMBERED_CHARS = 32
# CLIP's longest token has 32 bytes: a text with fewer than one token in 64 characters is mostly blanks, control
# characters and nested entities. The limit cannot be much higher: ftfy and NFC take quadratic time for some texts.
_CHARS_PER_TOKEN = 64
_BLANKS = re.compile(r"[ \t\n]{3,}")
# Texts that `basic_clean` only strips of blanks at the ends: ASCII without control characters and entities.
_PLAIN = re.compile(r"[\t\n !-%'-~]*")
# open_clip's cleaning functions without their first step, `basic_clean`.
_WITHOUT_BASIC_CLEAN: Mapping[Callable[[str], str], Callable[[str], str]] = {
    get_clean_fn("lower"): lambda text: whitespace_clean(text).lower(),
    get_clean_fn("whitespace"): whitespace_clean,
    get_clean_fn("canonicalize"): canonicalize_text,
}


class BpeTokenizer:
    """Gives the tokens of a `SimpleTokenizer`. Thread-safe.

    Texts of up to 64 characters per token of a row, start and end not counted, have exactly open_clip's tokens; longer
    texts too, except for the unusual cases listed in `head`. A numeric entity of more than 4300 digits, for which
    open_clip raises an error, is left unchanged.

    Args:
        tokenizer: defines vocabulary, cleaning, context length and reduction.
    """

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.context_length: int = tokenizer.context_length
        self._tokenizer = tokenizer
        self._specials = {tokenizer.decoder[token]: token for token in tokenizer.all_special_ids}
        self._without_basic_clean = _WITHOUT_BASIC_CLEAN[tokenizer.clean_fn]
        self._remembered = lru_cache(_REMEMBERED_WORDS)(self._encode_word)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Tokens of each text between a start and an end token, as from `SimpleTokenizer.__call__`.

        Args:
            texts: one or several.
            context_length: tokens of a row; None is the tokenizer's own.

        Returns:
            int64, shape (number of texts, context length), padded with zeros, cut off at the end.
        """
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else texts
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        if self._tokenizer.reduction_fn is not None:
            reduced: torch.Tensor = self._tokenizer.reduction_fn(
                texts, context_length=length, sot_token_id=start, eot_token_id=end, encode_fn=self.encode
            )
            return reduced
        # The end token comes last, even if the row has only one element.
        rows = [[start, *self.encode(text, max(length - 2, 0)), end][-length:] for text in texts]
        padded = [row + [0] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(rows), length)

    def encode(self, text: str, count: int | None = None) -> list[int]:
        """The first `count` tokens of a text, without start and end; all of them if None."""
        tokens: list[int] = []
        cleaned = self._clean(text if count is None else head(text, count))
        # Lazily: the text after the last token that is needed is not searched.
        for match in self._tokenizer.pat.finditer(cleaned):
            word = match[0]
            tokens += self._remembered(word) if len(word) <= _REMEMBERED_CHARS else self._encode_word(word)
            if count is not None and len(tokens) >= count:
                return tokens[:count]
        return tokens

    def _clean(self, text: str) -> str:
        """As the tokenizer's `clean_fn`, but skips `basic_clean`, which takes 30 µs, where it would change nothing."""
        if _PLAIN.fullmatch(text):
            return self._without_basic_clean(text)
        try:
            cleaned: str = self._tokenizer.clean_fn(text)
        except ValueError:  # "Exceeds the limit (4300 digits) for integer string conversion", from html.unescape
            return self._without_basic_clean(text)
        return cleaned

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """Tokens of one word, a match of the tokenizer's pattern."""
        # ftfy leaves no lone surrogates; "replace" is for texts that `_clean` could not give to it.
        letters = [self._tokenizer.byte_encoder[byte] for byte in word.encode(errors="replace")]
        special = self._specials.get("".join(letters))
        if special is not None:
            return (special,)
        letters[-1] += "</w>"
        encoder = self._tokenizer.encoder
        return tuple(encoder[part] for part in merge(letters, self._tokenizer.bpe_ranks))


def merge(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte pair encoding with the result of `SimpleTokenizer.bpe`, in n log n steps for n symbols.

    As long as there are neighbouring pairs with a rank, all pairs of the lowest rank are joined, from left to right.
    Each such pass visits only the positions of its pairs instead of the whole word. New pairs are recorded at the end
    of a pass, since in the original they wait for the next pass even if their rank is lower. They never have the rank
    of the pass itself, since a joined symbol is longer than both symbols of that pair. A recorded position may be
    outdated: in 'aaa' the second one is after the first join.

    Args:
        symbols: of one word, not empty.
        ranks: of the pairs that may be joined, none of which has an empty symbol.
    """
    end = len(symbols)
    # The empty symbol at the end is the right neighbour of the last symbol and, as index -1, the left neighbour of the
    # first. Symbols that were joined to the one before them are empty too. No pair with an empty symbol has a rank.
    parts = [*symbols, ""]
    after, before = [*range(1, end + 1), end], list(range(-1, end))
    positions = _positions_by_rank(symbols, ranks)
    ranked = sorted(positions)
    while ranked:
        rank = heapq.heappop(ranked)
        for position in _join_pairs(parts, (after, before), sorted(positions.pop(rank)), ranks, rank):
            for left in before[position], position:
                new = ranks.get((parts[left], parts[after[left]]))
                if new is None:
                    continue
                if new not in positions:
                    positions[new] = []
                    heapq.heappush(ranked, new)
                positions[new].append(left)
    return [part for part in parts if part]


def _positions_by_rank(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> dict[int, list[int]]:
    """The positions of the pairs of each rank."""
    positions: dict[int, list[int]] = {}
    for position, pair in enumerate(pairwise(symbols)):
        rank = ranks.get(pair)
        if rank is not None:
            positions.setdefault(rank, []).append(position)
    return positions


def _join_pairs(
    parts: list[str],
    links: tuple[list[int], list[int]],
    positions: list[int],
    ranks: Mapping[tuple[str, str], int],
    rank: int,
) -> list[int]:
    """One pass: joins the pairs at these positions. Returns those that were not outdated."""
    after, before = links
    joined = []
    for position in positions:
        second = after[position]
        if ranks.get((parts[position], parts[second])) != rank:
            continue  # outdated: one of the two was joined to another symbol
        parts[position] += parts[second]
        parts[second] = ""
        after[position] = after[second]
        before[after[second]] = position
        joined.append(position)
    return joined


def head(text: str, count: int) -> str:
    """The start of a text, long enough for its first `count` tokens, in time that depends on `count` only.

    A cut behind a line feed does not change the tokens before it: ftfy fixes each line separately, and neither entities
    nor the context of a final sigma extend across it. Nor does a cut at a space if the line is ASCII without "&" up to
    there: no fix of later characters reaches back. In texts of more than 64 characters per token, tokens may differ if

    - a text has so many blanks, entities, control characters and the like that its start has fewer than `count` tokens;
    - a non-ASCII line is longer than the start, and only its rest would make ftfy treat the line as mojibake;
    - a word, or a text without spaces, is longer than the start, and the characters just before the cut would have an
      effect on symbols some thousand characters earlier.

    Args:
        text: before it is cleaned.
        count: of tokens.
    """
    limit = _CHARS_PER_TOKEN * count
    if len(text) <= limit:
        return text
    # Tables and indented text have long blanks. The first blank is kept, since ftfy treats some spaces as mojibake.
    text = _BLANKS.sub(lambda match: match[0][0] + "\n" * ("\n" in match[0][1:]), text[: 16 * limit])
    if len(text) <= limit:
        return text
    for mark in "\n", " ":
        cut = text.rfind(mark, limit // 2, limit)
        if cut >= 0:
            return text[: cut + 1]
    return text[:limit]
