"""Splits an English sentence into words: NLTK's word tokenizer, without the patterns that cannot match.

NLTK applies thirty substitutions to each sentence. Most of them need a character that the sentence does not contain.
Searching for that character first gives the same words several times as fast, above all in texts that consist of very
short sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from nltk.tokenize.destructive import NLTKWordTokenizer

CACHED_SENTENCES = 1 << 14
CACHED_CHARS = 32
"""Words are cached only for sentences up to this length: texts that are made to be slow repeat short sentences."""

_NN = ("nn", "nN", "Nn", "NN")
_MM = ("mm", "mM", "Mm", "MM")
_TT = ("tt", "tT", "Tt", "TT")
# For a pattern of NLTK: strings of which a text must contain at least one for the pattern to match. A pattern that is
# not listed here is always applied.
NEEDED: dict[str, tuple[str, ...]] = {
    "([«“‘„]|[`]+)": ("«", "“", "‘", "„", "`"),
    r"^\"": ('"',),
    r"(``)": ("``",),
    r"([ \(\[{<])(\"|\'{2})": ('"', "''"),
    r"(?i)(?<!\w)(\')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)": ("'",),
    "([»”’])": ("»", "”", "’"),
    r"''": ("''",),
    r'"': ('"',),
    r"([^' ])('[sS]|'[mM]|'[dD]|') ": ("'",),
    r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ": ("'",),
    r'([^\.])(\.)([\]\)}>"\'' "»”’ " r"]*+)\s*$": (".",),
    r"([:,])([^\d])": (":", ","),
    r"([:,])$": (":", ","),
    r"\.{2,}": ("..",),
    r"[;@#$%&]": (";", "@", "#", "$", "%", "&"),
    r"[\u2012-\u2015]": ("\u2012", "\u2013", "\u2014", "\u2015"),
    r'([^\.])(\.)([\]\)}>"\']*)\s*$': (".",),
    r"[?!]": ("?", "!"),
    r"([^'])' ": ("' ",),
    r"[*]": ("*",),
    r"[\]\[\(\)\{\}\<\>]": ("[", "]", "(", ")", "{", "}", "<", ">"),
    r"--": ("--",),
    r"(?i)\b(can)(?#X)(not)\b": _NN,
    r"(?i)\b(d)(?#X)('ye)\b": ("'",),
    r"(?i)\b(gim)(?#X)(me)\b": _MM,
    r"(?i)\b(gon)(?#X)(na)\b": _NN,
    r"(?i)\b(got)(?#X)(ta)\b": _TT,
    r"(?i)\b(lem)(?#X)(me)\b": _MM,
    r"(?i)\b(more)(?#X)('n)\b": ("'",),
    r"(?i)\b(wan)(?#X)(na)(?=\s)": _NN,
    r"(?i) ('t)(?#X)(is)\b": ("'",),
    r"(?i) ('t)(?#X)(was)\b": ("'",),
}


class _Prefiltered:
    """A pattern that is applied only to texts that it can match."""

    __slots__ = ("_needed", "_sub")

    def __init__(self, pattern: Any) -> None:
        self._sub = pattern.sub
        # Every text contains the empty string, so a pattern that is not listed is always applied.
        self._needed = NEEDED.get(pattern.pattern, ("",))

    def sub(self, replacement: str, text: str) -> str:
        for needed in self._needed:
            if needed in text:
                result: str = self._sub(replacement, text)
                return result
        return text


def _prefiltered(rules: list[tuple[Any, str]]) -> list[tuple[_Prefiltered, str]]:
    return [(_Prefiltered(pattern), replacement) for pattern, replacement in rules]


class WordTokenizer(NLTKWordTokenizer):  # type: ignore[misc]  # NLTK has no types
    """Gives the same words as NLTK."""

    STARTING_QUOTES = _prefiltered(NLTKWordTokenizer.STARTING_QUOTES)
    ENDING_QUOTES = _prefiltered(NLTKWordTokenizer.ENDING_QUOTES)
    PUNCTUATION = _prefiltered(NLTKWordTokenizer.PUNCTUATION)
    (PARENS_BRACKETS,) = _prefiltered([NLTKWordTokenizer.PARENS_BRACKETS])
    (DOUBLE_DASHES,) = _prefiltered([NLTKWordTokenizer.DOUBLE_DASHES])
    CONTRACTIONS2: ClassVar = [_Prefiltered(pattern) for pattern in NLTKWordTokenizer.CONTRACTIONS2]
    CONTRACTIONS3: ClassVar = [_Prefiltered(pattern) for pattern in NLTKWordTokenizer.CONTRACTIONS3]

    def __init__(self) -> None:
        self._cached = lru_cache(CACHED_SENTENCES)(lambda sentence: tuple(self.tokenize(sentence)))

    def words(self, sentence: str) -> Sequence[str]:
        """The words of one sentence; a text must be split into sentences first."""
        words: Sequence[str] = self._cached(sentence) if len(sentence) <= CACHED_CHARS else self.tokenize(sentence)
        return words
