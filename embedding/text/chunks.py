"""Splits texts into chunks exactly as Marqo does, which stores the chunks as keys in its index.

Input: texts, a unit (character, word, sentence or passage), a window length and an overlap. Output: lists of chunks.

Source: docs/protocol.md, sections 6.2 and 6.3. It can be imported without torch; NLTK is loaded on first use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from embedding.errors import Fault, ItemError, RequestError
from embedding.memory_estimate import Expansion, shown_bytes, text_bytes

SplitMethod = Literal["character", "word", "sentence", "passage"]

MAX_EXPANDED_BYTES = 256 * 2**20
"""Default limit of the bytes that all chunks of one request may take, with their vectors. Windows that overlap almost
entirely turn one megabyte of text into gigabytes, and so do a million chunks of one character each. Ordinary requests
stay far below this limit."""
_NO_VECTORS = Expansion("", 0)


class _Tokenizers(NamedTuple):
    sentences: Callable[[str], list[str]]
    words: Callable[[str], Sequence[str]]
    """Takes one sentence, not a whole text."""


def chunk_text(
    text: str,
    method: SplitMethod,
    length: int,
    overlap: int,
    expansion: Expansion = _NO_VECTORS,
    max_bytes: int = MAX_EXPANDED_BYTES,
) -> list[str]:
    """Splits a text into windows of ``length`` units, each of which shares ``overlap`` units with the one before.

    Blocks. The time grows linearly with the text: about a second for a megabyte of prose, and up to ten for a megabyte
    of very short sentences. So call it in a thread, not on an event loop.

    Args:
        text: the text, without prefix.
        method: the unit. ``word`` and ``sentence`` are those of NLTK for English, for texts of any language.
        length: number of units in a window.
        overlap: number of units that neighbouring windows share.
        expansion: the memory that a chunk costs, with its vector.
        max_bytes: maximum cost of all chunks together, in bytes.

    Returns:
        At least one chunk, in order of appearance. Chunks of words are not always substrings of the text.

    Raises:
        ValueError: not ``0 <= overlap < length``.
        RequestError: REFUSED; the chunks cost more than `max_bytes` together, or NLTK's own time limit was reached.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"need 0 <= overlap < length, got length {length} and overlap {overlap}")
    if not text.strip():
        return [" "]
    if len(text) == 1:
        return [text]
    units = _split(text, method)
    try:
        return _join_windows(units, "" if method == "character" else " ", length, overlap, expansion, max_bytes)
    except _TooManyBytes:
        raise RequestError(
            Fault.REFUSED,
            f"a content of {len(text)} characters in chunks of {length} with an overlap of {overlap} would take "
            f"more than the {shown_bytes(max_bytes)} that are left for this request; use larger chunks, a smaller "
            "overlap, or send less text",
        ) from None


def chunk_texts(
    texts: Sequence[str],
    method: SplitMethod,
    length: int,
    overlap: int,
    expansion: Expansion = _NO_VECTORS,
    max_bytes: int = MAX_EXPANDED_BYTES,
) -> list[list[str] | ItemError]:
    """`chunk_text` for several texts, whose chunks may cost `max_bytes` together.

    Returns:
        For each text, in order, its chunks, or an error in place of the chunks of a text that could not be split.
    """
    results: list[list[str] | ItemError] = []
    for text in texts:
        try:
            chunks = chunk_text(text, method, length, overlap, expansion, max_bytes)
        except RequestError as error:
            results.append(ItemError(error.message))
        else:
            max_bytes -= chunks_cost(chunks, expansion)
            results.append(chunks)
    return results


def chunks_cost(chunks: Sequence[str], expansion: Expansion) -> int:
    """Bytes that the chunks of a text cost, with their vectors."""
    return expansion.nbytes(len(chunks), sum(map(text_bytes, chunks)))


def _split(text: str, method: SplitMethod) -> Sequence[str]:
    match method:
        case "character":
            return text
        case "passage":
            return text.split("\n\n")
        case "sentence":
            return _sentences(text)
        case "word":
            return [word for sentence in _sentences(text) for word in _words(sentence)]


class _TooManyBytes(Exception):
    """The chunks of a text cost more than `max_bytes`."""


def _join_windows(
    units: Sequence[str], separator: str, length: int, overlap: int, expansion: Expansion, max_bytes: int
) -> list[str]:
    # The last window is the first one that reaches the end of the text: no window consists of shared units only.
    starts = range(0, max(len(units) - overlap, 1), length - overlap)
    max_bytes -= expansion.nbytes(len(starts), 0)
    chunks = []
    for start in starts:
        if max_bytes < 0:
            raise _TooManyBytes
        chunk = separator.join(units[start : start + length])
        max_bytes -= expansion.nbytes(0, text_bytes(chunk))
        if chunk:
            chunks.append(chunk)
    if max_bytes < 0:
        raise _TooManyBytes
    return chunks


def _sentences(text: str) -> list[str]:
    try:
        return _tokenizers().sentences(text)
    except TimeoutError as error:
        raise _timed_out(text) from error


def _words(sentence: str) -> Sequence[str]:
    try:
        return _tokenizers().words(sentence)
    except TimeoutError as error:
        raise _timed_out(sentence) from error


def _timed_out(text: str) -> RequestError:
    return RequestError(
        Fault.REFUSED,
        f"splitting a text of {len(text)} characters took too long; send it in smaller contents",
    )


_loading = threading.Lock()


def _tokenizers() -> _Tokenizers:
    """NLTK's tokenizers, loaded once and shared by all threads (they keep no state between calls)."""
    with _loading:
        return _load_tokenizers()


@cache
def _load_tokenizers() -> _Tokenizers:
    # Imported here and not at the top, because importing NLTK takes 0.4 s.
    from embedding.text.sentences import SentenceTokenizer
    from embedding.text.words import WordTokenizer

    return _Tokenizers(sentences=SentenceTokenizer().tokenize, words=WordTokenizer().words)
