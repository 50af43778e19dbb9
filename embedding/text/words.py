"""NLTK's word tokenizer, without running the patterns that cannot match.

It sends each sentence through thirty substitutions, most of which need a character that the sentence does not have.
Looking for that character first gives the same words several times as fast, most of all in texts made of nothing but
sentence ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from nltk.tokenize.destructive import NLTKWordTokenizer

REMEMBERED = 1 << 14
REMEMBERED_CHARS = 32
"""The longest sentence whose words are remembered: texts made to be slow repeat short ones."""

_NN = ("nn", "nN", "Nn", "NN")
_MM = ("mm", "mM", "Mm", "MM")
_TT = ("tt", "tT", "Tt", "TT")
# A pattern of NLTK, and strings of which a text must hold one for it to match. Patterns that are not here always run.
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


class _Guarded:
    """A pattern that is tried only where it can match."""

    __slots__ = ("_needed", "_sub")

    def __init__(self, pattern: Any) -> None:
        self._sub = pattern.sub
        # The empty string is in every text.
        self._needed = NEEDED.get(pattern.pattern, ("",))

    def sub(self, replacement: str, text: str) -> str:
        for needed in self._needed:
            if needed in text:
                result: str = self._sub(replacement, text)
                return result
        return text


def _guarded(rules: list[tuple[Any, str]]) -> list[tuple[_Guarded, str]]:
    return [(_Guarded(pattern), replacement) for pattern, replacement in rules]


class WordTokenizer(NLTKWordTokenizer):  # type: ignore[misc]  # NLTK has no types
    """The same words as NLTK's."""

    STARTING_QUOTES = _guarded(NLTKWordTokenizer.STARTING_QUOTES)
    ENDING_QUOTES = _guarded(NLTKWordTokenizer.ENDING_QUOTES)
    PUNCTUATION = _guarded(NLTKWordTokenizer.PUNCTUATION)
    (PARENS_BRACKETS,) = _guarded([NLTKWordTokenizer.PARENS_BRACKETS])
    (DOUBLE_DASHES,) = _guarded([NLTKWordTokenizer.DOUBLE_DASHES])
    CONTRACTIONS2: ClassVar = [_Guarded(pattern) for pattern in NLTKWordTokenizer.CONTRACTIONS2]
    CONTRACTIONS3: ClassVar = [_Guarded(pattern) for pattern in NLTKWordTokenizer.CONTRACTIONS3]

    def __init__(self) -> None:
        self._remembered = lru_cache(REMEMBERED)(lambda sentence: tuple(self.tokenize(sentence)))

    def words(self, sentence: str) -> Sequence[str]:
        """The words of one sentence, not of a text."""
        words: Sequence[str] = (
            self._remembered(sentence) if len(sentence) <= REMEMBERED_CHARS else self.tokenize(sentence)
        )
        return words
