"""Cut a text into chunks, word for word as Marqo does: the chunks are stored in its index as keys.

Source: protocol sheet, sections 6.2 and 6.3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from embedding.errors import Fault, ItemError, RequestError

SplitMethod = Literal["character", "word", "sentence", "passage"]

MAX_CHUNK_CHARACTERS = 64_000_000
"""The most characters that the chunks of one request may hold together. Windows that overlap almost entirely
turn one megabyte into gigabytes, so there has to be an end; no sensible request comes near this one."""


class _Tokenizers(NamedTuple):
    sentences: Callable[[str], list[str]]
    words: Callable[[str], Sequence[str]]
    """Expects one sentence, not a text."""


def chunk_text(
    content: str, method: SplitMethod, length: int, overlap: int, max_characters: int = MAX_CHUNK_CHARACTERS
) -> list[str]:
    """Split a content into windows of ``length`` units that share ``overlap`` units with the one before.

    The work grows linearly with the content, but it is Python: about a second for a megabyte of prose, and up to ten
    for a megabyte of nothing but short sentences. So call this in a thread, never on an event loop.

    Args:
        content: the text, without prefix.
        method: what a unit is. ``word`` and ``sentence`` are NLTK's, for English, whatever the language.
        length: units in a window.
        overlap: units that neighbours share.
        max_characters: of all chunks together.

    Returns:
        At least one chunk, in order of appearance. Word chunks are not substrings of the content.

    Raises:
        ValueError: not ``0 <= overlap < length``.
        RequestError: the chunks together exceed `max_characters`, or NLTK gave up on the text.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"need 0 <= overlap < length, got length {length} and overlap {overlap}")
    if not content.strip():
        return [" "]
    if len(content) == 1:
        return [content]
    units = _split(content, method)
    return _join_windows(units, "" if method == "character" else " ", length, overlap, max_characters)


def chunk_texts(contents: Sequence[str], method: SplitMethod, length: int, overlap: int) -> list[list[str] | ItemError]:
    """`chunk_text` for several contents, whose chunks share the limit; one that cannot be split is its own error."""
    results: list[list[str] | ItemError] = []
    room = MAX_CHUNK_CHARACTERS
    for content in contents:
        try:
            chunks = chunk_text(content, method, length, overlap, room)
        except RequestError as error:
            results.append(ItemError(error.message))
        else:
            room -= sum(map(len, chunks))
            results.append(chunks)
    return results


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


def _join_windows(units: Sequence[str], separator: str, length: int, overlap: int, max_characters: int) -> list[str]:
    chunks = []
    characters = 0
    # The last start is the first one whose window reaches the end: no window holds only shared units.
    for start in range(0, max(len(units) - overlap, 1), length - overlap):
        chunk = separator.join(units[start : start + length])
        characters += len(chunk)
        if characters > max_characters:
            raise RequestError(Fault.REFUSED, too_many_characters(length, overlap))
        if chunk:
            chunks.append(chunk)
    return chunks


def too_many_characters(length: int, overlap: int) -> str:
    """What a content is told whose chunks find no room any more."""
    return (
        f"chunks of {length} with an overlap of {overlap} blow this request's contents up to more than "
        f"{MAX_CHUNK_CHARACTERS} characters; use a smaller overlap or send less text"
    )


def _sentences(text: str) -> list[str]:
    try:
        return _tokenizers().sentences(text)
    except TimeoutError as error:
        raise _gave_up(text) from error


def _words(sentence: str) -> Sequence[str]:
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
    # Importing NLTK takes 0.4 s, so only here.
    from embedding.sentences import SentenceTokenizer
    from embedding.words import WordTokenizer

    return _Tokenizers(sentences=SentenceTokenizer().tokenize, words=WordTokenizer().words)
