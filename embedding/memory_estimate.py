"""Estimates the memory that a request will need for its keys, texts, vectors and reply, before any of them is created.

Input: numbers of keys and characters. Output: bytes, which `check_expansion` compares with a limit.

The limit is needed because a small body can expand a lot: a prefix is added to each item, each chunk, even of one
character, is a Python object with a vector, and a vector may be a thousand times as large as its text. Without a limit
a body of some kilobytes could take gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedding.errors import Fault, RequestError

OBJECT_BYTES = 400
"""Overhead of one key with its vector: Python's objects for a string, a pair and an array, without their data."""
VECTOR_COPIES = 2
"""The row that the encoder returned, and its copy in the reply."""
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Expansion:
    """What each key of a request costs. A key is an item or, where texts are chunked, a chunk.

    Args:
        prefix: text that is put before each text.
        dimensions: length of the vectors, which are float32.
    """

    prefix: str
    dimensions: int

    def nbytes(self, keys: int, characters: int) -> int:
        """Bytes that `keys` keys need, with their vectors, whose texts take `characters` bytes (see `text_bytes`)."""
        each = OBJECT_BYTES + VECTOR_COPIES * 4 * self.dimensions + text_bytes(self.prefix)
        # A key, and its copy in the reply.
        return keys * each + 2 * characters


def text_bytes(text: str) -> int:
    """Upper bound of the bytes that Python needs for the characters of a text, without looking at each of them."""
    return len(text) * (1 if text.isascii() else 4)


def shown_bytes(nbytes: int) -> str:
    """A number of bytes in MiB, as messages show it."""
    return f"{nbytes / MEBIBYTE:,.0f} MiB"


def check_expansion(nbytes: int, most: int) -> None:
    """Checks an estimate against the limit of one request.

    Args:
        nbytes: the estimate, in bytes.
        most: the limit, in bytes.

    Raises:
        RequestError: TOO_LARGE; the estimate is above the limit.
    """
    if nbytes > most:
        raise RequestError(
            Fault.TOO_LARGE,
            f"The contents of this request would take {shown_bytes(nbytes)} with their prefixes and vectors, "
            f"and at most {shown_bytes(most)} are taken; send several requests",
        )
