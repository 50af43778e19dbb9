"""What a request becomes: bytes of keys, texts, vectors and reply, counted before any of them is made.

A prefix stands before each content, a chunk of one character is an object with a vector, and a vector may be a thousand
times as long as its text: without a bound on all that together, a body of kilobytes takes gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedding.errors import Fault, RequestError

OBJECT_BYTES = 400
"""Of one key with its vector: what Python takes for a string, a pair and an array, beside what they hold."""
VECTOR_COPIES = 2
"""The row as the encoder gave it, and the one in the reply."""
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Expansion:
    """What each key of a request costs.

    Args:
        prefix: stands before each text.
        dimensions: of the vectors.
    """

    prefix: str
    dimensions: int

    def nbytes(self, keys: int, characters: int) -> int:
        """Of so many keys that have so many bytes of characters (see `text_bytes`) together."""
        each = OBJECT_BYTES + VECTOR_COPIES * 4 * self.dimensions + text_bytes(self.prefix)
        # A key, and its copy in the reply.
        return keys * each + 2 * characters


def text_bytes(text: str) -> int:
    """What Python takes for the characters of a text, at most, without looking at each."""
    return len(text) * (1 if text.isascii() else 4)


def shown_bytes(nbytes: int) -> str:
    """For people."""
    return f"{nbytes / MEBIBYTE:,.0f} MiB"


def check_expansion(nbytes: int, most: int) -> None:
    """Whether a request may become so much.

    Raises:
        RequestError: TOO_LARGE.
    """
    if nbytes > most:
        raise RequestError(
            Fault.TOO_LARGE,
            f"The contents of this request would take {shown_bytes(nbytes)} with their prefixes and vectors, "
            f"and at most {shown_bytes(most)} are taken; send several requests",
        )
