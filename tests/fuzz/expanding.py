"""Requests that become more than they are: what is admitted takes no more memory than was counted."""

from __future__ import annotations

from random import Random

import msgpack
import numpy as np

from embedding.errors import Fault, ItemError, RequestError
from embedding.memory_estimate import Expansion, check_expansion
from embedding.models.spec import ModelSpec
from embedding.protocol import InferenceRequest, TextConfig, Vectors, decode_request, encode_parts
from embedding.text.chunks import chunk_texts, chunks_cost
from tests.fuzz.target import Finding

LIMIT = 8 * 2**20
"""Small, so that many inputs come near it."""
ALPHABET = ("a", "ab ", "A b. ", "\n\n", "é", "你", "\U0001f600", "x" * 30 + " ", "")
METHODS = ("character", "word", "sentence", "passage")


class Expanding:
    """Prefixes, chunks and wide vectors: keys, rows and the reply are made if the count admits them."""

    name = "expanding"
    deadline_s = 1.0
    memory_bytes = 3 * LIMIT

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`."""
        rng = Random(seed << 40 | index)
        unit = rng.choice(ALPHABET)
        content = unit * _many(rng, 3000)
        length = 1 + _many(rng, 1000)
        chunked = rng.random() < 0.6
        config = {"splitMethod": rng.choice(METHODS), "splitLength": length, "splitOverlap": rng.randrange(length)}
        config["splitOverlap"] = rng.choice((0, length - 1, config["splitOverlap"]))
        preprocessing = {"textPrefix": rng.choice(ALPHABET) * _many(rng, 3000), "shouldChunk": chunked}
        properties = {"type": "random", "dimensions": 1 + _many(rng, 65_535)}
        body = {
            "modality": "language",
            "contents": [content] * (1 + _many(rng, 1 if chunked else 3000)),
            "modelConfig": {"modelName": "m", "modelProperties": properties},
            "preprocessingConfig": preprocessing | ({"chunkConfig": config} if chunked else {}),
        }
        packed: bytes = msgpack.packb(body)
        return packed

    def run(self, data: bytes, index: int) -> str:
        """What an ingress does with a request, but for the calls."""
        try:
            return self._answered(decode_request(data))
        except RequestError as error:
            if error.fault is not Fault.TOO_LARGE:
                raise Finding("wrong fault", f"{error.fault}: {error.message}") from None
            return "refused"

    def _answered(self, request: InferenceRequest) -> str:
        config = request.preprocessing_config
        assert isinstance(config, TextConfig)
        expansion = Expansion(config.text_prefix or "", ModelSpec.from_config(request.model_settings).dimensions)
        check_expansion(chunks_cost(request.contents, expansion), LIMIT)
        keys: list[list[str] | ItemError] = [[content] for content in request.contents]
        if windows := config.chunk_config:
            method, length, overlap = windows.split_method, windows.split_length, windows.split_overlap
            keys = chunk_texts(request.contents, method, length, overlap, expansion, LIMIT)
        items: list[Vectors | ItemError] = [
            key
            if isinstance(key, ItemError)
            else [(chunk, np.zeros(expansion.dimensions, np.float32)) for chunk in key]
            for key in keys
        ]
        refused = any(isinstance(item, ItemError) for item in items)
        size = sum(map(len, encode_parts(items)))
        if size > 2 * LIMIT:
            raise Finding("long reply", f"{size} bytes")
        return "an error of the content" if refused else "answered"


def _many(rng: Random, most: int) -> int:
    """Mostly few."""
    return int(most ** rng.random()) if most else 0
