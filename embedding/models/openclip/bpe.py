"""open_clip's `SimpleTokenizer` with the same tokens, in bounded time and memory whatever strangers write.

open_clip's own (open_clip/tokenizer.py, after https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py)

- merges a word in quadratic time: 13 s for 16,000 random letters, all of them with the interpreter's lock held;
- cleans and encodes a text to its end, to use 75 tokens of it: 33 s for a megabyte of line feeds;
- remembers every word that it has ever seen.
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
# No token is longer; 64 would let strangers fill 160 MB instead of 80.
_REMEMBERED_CHARS = 32
# CLIP's longest token has 32 bytes: texts with fewer tokens than one in 64 characters are little but blanks, control
# characters and nested entities. Many more would be too many for ftfy and NFC, which some texts cost quadratic time.
_CHARS_PER_TOKEN = 64
_BLANKS = re.compile(r"[ \t\n]{3,}")
# What `basic_clean` leaves as it is, but for blanks at the ends: ASCII without control characters and entities.
_PLAIN = re.compile(r"[\t\n !-%'-~]*")
# open_clip's cleanings without their first step, `basic_clean`.
_WITHOUT_BASIC_CLEAN: Mapping[Callable[[str], str], Callable[[str], str]] = {
    get_clean_fn("lower"): lambda text: whitespace_clean(text).lower(),
    get_clean_fn("whitespace"): whitespace_clean,
    get_clean_fn("canonicalize"): canonicalize_text,
}


class BpeTokenizer:
    """Gives the tokens of a `SimpleTokenizer`. Safe to call from several threads.

    Texts of up to 64 characters per token of a row, start and end not counted, have exactly open_clip's tokens; longer
    ones too, but for the absurd cases that `head` tells. A numeric entity of more than 4300 digits, at which open_clip
    raises, is left as it is.

    Args:
        tokenizer: which vocabulary, cleaning, context length and reduction there are.
    """

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.context_length: int = tokenizer.context_length
        self._tokenizer = tokenizer
        self._specials = {tokenizer.decoder[token]: token for token in tokenizer.all_special_ids}
        self._without_basic_clean = _WITHOUT_BASIC_CLEAN[tokenizer.clean_fn]
        self._remembered = lru_cache(_REMEMBERED_WORDS)(self._encode_word)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """Tokens of each text between a start and an end token, as `SimpleTokenizer.__call__`.

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
        # The end token comes last, even where there is room for nothing else.
        rows = [[start, *self.encode(text, max(length - 2, 0)), end][-length:] for text in texts]
        padded = [row + [0] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(rows), length)

    def encode(self, text: str, count: int | None = None) -> list[int]:
        """The first `count` tokens of a text, without start and end; all of them if None."""
        tokens: list[int] = []
        cleaned = self._clean(text if count is None else head(text, count))
        # Lazily: what follows the last token that is needed is not even looked at.
        for match in self._tokenizer.pat.finditer(cleaned):
            word = match[0]
            tokens += self._remembered(word) if len(word) <= _REMEMBERED_CHARS else self._encode_word(word)
            if count is not None and len(tokens) >= count:
                return tokens[:count]
        return tokens

    def _clean(self, text: str) -> str:
        """As the tokenizer's `clean_fn`, which spends 30 µs on finding nothing to fix."""
        if _PLAIN.fullmatch(text):
            return self._without_basic_clean(text)
        try:
            cleaned: str = self._tokenizer.clean_fn(text)
        except ValueError:  # "Exceeds the limit (4300 digits) for integer string conversion", from html.unescape
            return self._without_basic_clean(text)
        return cleaned

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """A match of the tokenizer's pattern."""
        # ftfy leaves no lone surrogates; "replace" is for the one text in which it failed.
        letters = [self._tokenizer.byte_encoder[byte] for byte in word.encode(errors="replace")]
        special = self._specials.get("".join(letters))
        if special is not None:
            return (special,)
        letters[-1] += "</w>"
        encoder = self._tokenizer.encoder
        return tuple(encoder[part] for part in merge(letters, self._tokenizer.bpe_ranks))


def merge(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte pair encoding, as the loop of `SimpleTokenizer.bpe`, in n log n steps for n symbols.

    As long as there are pairs of neighbours with a rank, joins all pairs of the lowest one, from left to right. Each
    such pass visits only the places of its pairs, instead of the whole word. What a pass puts together is noted at its
    end, since in the original it waits for the next pass, even where its rank is lower. It never has the rank of the
    pass itself: it is longer than both symbols of that pair. In 'aaa' the second place is stale after the first join.

    Args:
        symbols: of one word, not empty.
        ranks: of the pairs that may be joined, none of which has an empty symbol.
    """
    end = len(symbols)
    # The empty symbol at the end is the neighbour of the last symbol and, as place -1, of the first one. Symbols that
    # have become part of the one before them are empty too: no pair with them has a rank.
    parts = [*symbols, ""]
    after, before = [*range(1, end + 1), end], list(range(-1, end))
    places = _places_by_rank(symbols, ranks)
    ranked = sorted(places)
    while ranked:
        rank = heapq.heappop(ranked)
        for place in _joined(parts, (after, before), sorted(places.pop(rank)), ranks, rank):
            for left in before[place], place:
                new = ranks.get((parts[left], parts[after[left]]))
                if new is None:
                    continue
                if new not in places:
                    places[new] = []
                    heapq.heappush(ranked, new)
                places[new].append(left)
    return [part for part in parts if part]


def _places_by_rank(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> dict[int, list[int]]:
    """Where there are pairs of each rank."""
    places: dict[int, list[int]] = {}
    for place, pair in enumerate(pairwise(symbols)):
        rank = ranks.get(pair)
        if rank is not None:
            places.setdefault(rank, []).append(place)
    return places


def _joined(
    parts: list[str],
    links: tuple[list[int], list[int]],
    places: list[int],
    ranks: Mapping[tuple[str, str], int],
    rank: int,
) -> list[int]:
    """One pass: joins the pairs at these places, and tells at which there still was one of that rank."""
    after, before = links
    joined = []
    for place in places:
        second = after[place]
        if ranks.get((parts[place], parts[second])) != rank:
            continue  # one of the two has become part of another symbol
        parts[place] += parts[second]
        parts[second] = ""
        after[place] = after[second]
        before[after[second]] = place
        joined.append(place)
    return joined


def head(text: str, count: int) -> str:
    """Enough of a text for its first `count` tokens, in constant time.

    A cut behind a line feed changes nothing of what precedes it: ftfy fixes lines one by one, and neither entities nor
    the context of a final sigma cross it. Nor does a cut at a space, where the line up to there is ASCII without "&":
    no fix of what follows reaches back. Tokens differ, in texts of more than 64 characters per token, where

    - these are so few tokens, beside entities, control characters and the like, that `count` are not reached;
    - a line, not in ASCII, is so long, and ftfy would take it for mojibake for what comes in its later part only;
    - a word, or a text without spaces, is so long that the cut is inside, and the last characters before the cut have
      an effect on symbols from some thousand characters before.

    Args:
        text: before it is cleaned.
        count: of tokens.
    """
    limit = _CHARS_PER_TOKEN * count
    if len(text) <= limit:
        return text
    # Tables and indented text have long blanks. The first stays what it is, as ftfy takes some spaces for mojibake.
    text = _BLANKS.sub(lambda match: match[0][0] + "\n" * ("\n" in match[0][1:]), text[: 16 * limit])
    if len(text) <= limit:
        return text
    for mark in "\n", " ":
        cut = text.rfind(mark, limit // 2, limit)
        if cut >= 0:
            return text[: cut + 1]
    return text[:limit]
