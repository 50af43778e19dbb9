"""Marqo's ``random`` model: no weights, but the same text always gets the same vector. For tests and load.

Source: docs/protocol.md, section 7.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

HashName = Literal["blake3", "md5"]
"""``blake3`` is what Marqo 2.25 and later use, ``md5`` what it used before. An index made with one cannot be
searched with the other."""


def random_vectors(texts: Sequence[str], dimensions: int, hash_name: HashName = "blake3") -> NDArray[np.float32]:
    """Draw one vector per text, seeded by the text.

    Args:
        texts: to embed, prefix included.
        dimensions: length of a vector.
        hash_name: the hash that turns a text into a seed.

    Returns:
        float32, shape (len(texts), dimensions), normally distributed, not normalised.
    """
    vectors = np.empty((len(texts), dimensions), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        row[:] = np.random.default_rng(_seed(text, hash_name)).normal(size=dimensions)
    return vectors


def _seed(text: str, hash_name: HashName) -> int:
    """The first 32 bits of the hash, big-endian: its first 8 hex digits."""
    data = text.encode()
    digest = blake3(data).digest() if hash_name == "blake3" else hashlib.md5(data, usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big")
