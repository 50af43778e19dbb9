"""Requests that become far more than they are: what is taken stays within thrice its limit."""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack
import numpy as np

from embedding.errors import Fault, ItemError, RequestError
from embedding.expansion import Expansion, check_expansion
from embedding.protocol import collector_paused, decode_request, encode_result
from embedding.text import chunk_texts, chunks_cost
from fuzz.target import Finding

MOST = 4 * 2**20
"""What one request may become here: `ingress.max_expanded_bytes`."""
COUNTS = (1, 1, 2, 10, 100, 1000)
LENGTHS = (0, 1, 2, 10, 100, 1000, 10_000)
MOST_CHARS = 2**16
"""Of the contents together: splitting a megabyte takes seconds, and every count is reached without."""
DIMENSIONS = (1, 32, 512, 1024, 4096, 65_536)
LETTERS = ("a", "é", "你", "\U0001f600", "a b. ", "A. ", "\n\n", " ")
METHODS = ("character", "word", "sentence", "passage")


class Expansions:
    """Valid requests of any shape, and all that a server makes of them: chunks, prefixed texts, vectors, reply."""

    name = "expansions"
    deadline_s = 2.0
    memory_bytes = 3 * MOST

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`."""
        rng = Random(seed << 40 | index)
        content = rng.choice(LETTERS) * rng.choice(LENGTHS)
        chunked = rng.random() < 0.6
        length = rng.choice((1, 2, 3, 10, 100, 1000))
        windows = {"splitMethod": rng.choice(METHODS), "splitLength": length, "splitOverlap": rng.randrange(length)}
        text = {
            "modality": "language",
            "shouldChunk": chunked,
            "chunkConfig": windows if chunked else None,
            "textPrefix": rng.choice(LETTERS) * rng.choice(LENGTHS),
        }
        properties = {"name": "r", "type": "random", "dimensions": rng.choice(DIMENSIONS)}
        return _packed([content] * max(1, min(rng.choice(COUNTS), MOST_CHARS // (1 + len(content)))), properties, text)

    def run(self, data: bytes, index: int) -> str:
        """All of it made, or a refusal."""
        request = decode_request(data)
        config: Any = request.preprocessing_config
        expansion = Expansion(config.text_prefix or "", request.model_settings.model_properties["dimensions"])
        try:
            check_expansion(chunks_cost(request.contents, expansion), MOST)
        except RequestError as error:
            if error.fault is not Fault.TOO_LARGE:
                raise Finding("wrong fault", error.message) from None
            return "refused"
        keys = _keys(request.contents, config, expansion)
        with collector_paused():
            made = [item if isinstance(item, ItemError) else _vectors(item, expansion) for item in keys]
            encode_result(made)
        return "made, some contents refused" if any(isinstance(item, ItemError) for item in made) else "made"


def _keys(contents: Any, config: Any, expansion: Expansion) -> list[list[str] | ItemError]:
    windows = config.chunk_config
    if windows is None:
        return [[content] for content in contents]
    return chunk_texts(contents, windows.split_method, windows.split_length, windows.split_overlap, expansion, MOST)


def _vectors(keys: list[str], expansion: Expansion) -> list[tuple[str, np.ndarray]]:
    # As an encoder does: the texts of a call, not those of the whole request.
    rows = np.ones((len(keys), expansion.dimensions), np.float32)
    for start in range(0, len(keys), 128):
        [expansion.prefix + key for key in keys[start : start + 128]]
    return list(zip(keys, rows, strict=True))


def _packed(contents: list[str], properties: dict[str, Any], text: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(
        {
            "modality": "language",
            "contents": contents,
            "modelConfig": {"modelName": "r", "modelProperties": properties},
            "preprocessingConfig": text,
        }
    )
    return packed
