"""Cut a text into chunks, word for word as Marqo does: the chunks are stored in its index as keys.

Source: docs/protocol.md, sections 6.2 and 6.3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from embedding.errors import Fault, ItemError, RequestError
from embedding.expansion import Expansion, shown_bytes, text_bytes

SplitMethod = Literal["character", "word", "sentence", "passage"]

MOST_EXPANDED_BYTES = 256 * 2**20
"""What the chunks of one request may take together, unless the operator says otherwise. Windows that overlap almost
entirely turn one megabyte into gigabytes, and so do a million chunks of one character each; no sensible request comes
near this limit."""
_CHUNKS_ALONE = Expansion("", 0)


class _Tokenizers(NamedTuple):
    sentences: Callable[[str], list[str]]
    words: Callable[[str], Sequence[str]]
    """Expects one sentence, not a text."""


def chunk_text(
    content: str,
    method: SplitMethod,
    length: int,
    overlap: int,
    expansion: Expansion = _CHUNKS_ALONE,
    room: int = MOST_EXPANDED_BYTES,
) -> list[str]:
    """Split a content into windows of ``length`` units that share ``overlap`` units with the one before.

    The work grows linearly with the content, but it is Python: about a second for a megabyte of prose, and up to ten
    for a megabyte of nothing but short sentences. So call this in a thread, never on an event loop.

    Args:
        content: the text, without prefix.
        method: what a unit is. ``word`` and ``sentence`` are NLTK's, for English, whatever the language.
        length: units in a window.
        overlap: units that neighbours share.
        expansion: what a chunk costs, its vector included.
        room: bytes that all chunks together may cost.

    Returns:
        At least one chunk, in order of appearance. Word chunks are not substrings of the content.

    Raises:
        ValueError: not ``0 <= overlap < length``.
        RequestError: the chunks together cost more than `room`, or NLTK gave up on the text.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"need 0 <= overlap < length, got length {length} and overlap {overlap}")
    if not content.strip():
        return [" "]
    if len(content) == 1:
        return [content]
    units = _split(content, method)
    try:
        return _join_windows(units, "" if method == "character" else " ", length, overlap, expansion, room)
    except _NoRoom:
        raise RequestError(
            Fault.REFUSED,
            f"a content of {len(content)} characters in chunks of {length} with an overlap of {overlap} would take "
            f"more than the {shown_bytes(room)} that are left for this request; use larger chunks, a smaller overlap, "
            "or send less text",
        ) from None


def chunk_texts(
    contents: Sequence[str],
    method: SplitMethod,
    length: int,
    overlap: int,
    expansion: Expansion = _CHUNKS_ALONE,
    room: int = MOST_EXPANDED_BYTES,
) -> list[list[str] | ItemError]:
    """`chunk_text` for several contents, whose chunks share the room; one that cannot be split is its own error."""
    results: list[list[str] | ItemError] = []
    for content in contents:
        try:
            chunks = chunk_text(content, method, length, overlap, expansion, room)
        except RequestError as error:
            results.append(ItemError(error.message))
        else:
            room -= chunks_cost(chunks, expansion)
            results.append(chunks)
    return results


def chunks_cost(chunks: Sequence[str], expansion: Expansion) -> int:
    """Bytes that the chunks of a content take, with their vectors."""
    return expansion.nbytes(len(chunks), sum(map(text_bytes, chunks)))


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


class _NoRoom(Exception):
    """The chunks of a content cost more than is left."""


def _join_windows(
    units: Sequence[str], separator: str, length: int, overlap: int, expansion: Expansion, room: int
) -> list[str]:
    # The last start is the first one whose window reaches the end: no window holds only shared units.
    starts = range(0, max(len(units) - overlap, 1), length - overlap)
    room -= expansion.nbytes(len(starts), 0)
    chunks = []
    for start in starts:
        if room < 0:
            raise _NoRoom
        chunk = separator.join(units[start : start + length])
        room -= expansion.nbytes(0, text_bytes(chunk))
        if chunk:
            chunks.append(chunk)
    if room < 0:
        raise _NoRoom
    return chunks


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
    from embedding.text.sentences import SentenceTokenizer
    from embedding.text.words import WordTokenizer

    return _Tokenizers(sentences=SentenceTokenizer().tokenize, words=WordTokenizer().words)
