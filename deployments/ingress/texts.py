"""Texts: prefixed, cut into chunks where the request asks for it, and encoded many at a time."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import TypeGuard

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import Share
from deployments.ingress.gather import Answers, answered, cut, flags, reply_to, strict, together
from deployments.ingress.retry import retried
from deployments.ray_internals import by_reference
from deployments.routing import to_home
from embedding.errors import ItemError
from embedding.expansion import Expansion, check_expansion, text_bytes
from embedding.models.spec import ModelSpec
from embedding.protocol import ChunkConfig, InferenceRequest, TextConfig, Vectors
from embedding.text.chunks import chunk_texts, chunks_cost

# What costs less than a millisecond to split, whatever it holds, is split here. Splitting holds Python's lock, so more
# of it would hold up everybody else's requests.
INLINE_CHARS = 100
# Of the texts that a preprocessor splits in one call, unless a single one is longer. One call of a request at a time:
# what its chunks take counts before more of them are made.
SPLIT_CHARS = 250_000

# Between replicas, gRPC takes messages of up to 4 MiB. A single text that may come near that goes through the object
# store.
MESSAGE_BYTES = 3_000_000
IN_FLIGHT_BYTES = 32 * 2**20
"""Of the texts and vectors of one request's calls that are on their way at a time."""
Keys = list[str]
"""Of one content: itself, or the chunks that it is cut into."""


class TextFanOut:
    """Sends texts to encoders, and long ones that are to be cut into chunks to preprocessors first.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        chunk: texts in one call.
        max_chars: characters of one content; a longer one is its own error.
        max_bytes: what one request may become.
    """

    def __init__(
        self, preprocessor: DeploymentHandle, encoder: DeploymentHandle, chunk: int, max_chars: int, max_bytes: int
    ) -> None:
        # By reference: the chunks of one content may be larger than a message may be.
        self._split = by_reference(preprocessor, method_name="chunk_texts")
        self._encode = encoder.options(method_name="encode_texts")
        self._encode_much = by_reference(encoder, method_name="encode_texts")
        self._chunk = chunk
        self._max_chars = max_chars
        self._max_bytes = max_bytes

    async def vectorise(
        self, request: InferenceRequest, config: TextConfig, spec: ModelSpec, expanded: Share
    ) -> Answers:
        """One answer for each content of the request, in order.

        Args:
            request: what is asked for.
            config: of its texts.
            spec: the model.
            expanded: where the bytes count that the request becomes.
        """
        expansion = Expansion(config.text_prefix or "", spec.dimensions)
        keys = await self._keys(request.contents, config, expansion, expanded)
        strict(request, [key for key in keys if isinstance(key, ItemError)])
        split = [key for key in keys if _is_good(key)]
        good = iter(await self._vectors(request, expansion, spec, split) if split else ())
        return [key if isinstance(key, ItemError) else next(good) for key in keys]

    async def _keys(
        self, contents: Sequence[str], config: TextConfig, expansion: Expansion, expanded: Share
    ) -> list[Keys | ItemError]:
        keys = [self._too_long(content) if len(content) > self._max_chars else [content] for content in contents]
        whole = [key[0] for key in keys if _is_good(key)]
        # At least; chunks come on top.
        least = chunks_cost(whole, expansion)
        check_expansion(least, self._max_bytes)
        expanded.add(least)
        if config.chunk_config is None or not whole:
            return keys
        chunks = iter(await self._chunked(whole, config.chunk_config, expansion, expanded))
        return [next(chunks) if _is_good(key) else key for key in keys]

    async def _chunked(
        self, contents: Sequence[str], config: ChunkConfig, expansion: Expansion, expanded: Share
    ) -> list[Keys | ItemError]:
        windows = (config.split_method, config.split_length, config.split_overlap, expansion)
        inline = sum(map(len, contents)) <= INLINE_CHARS
        taken = 0
        keys: list[Keys | ItemError] = []
        for place, _ in cut(map(len, contents), len(contents), SPLIT_CHARS):
            arguments = (contents[place], *windows, self._max_bytes - taken)
            if inline:
                # In a thread, since the very first one loads NLTK.
                part = await asyncio.to_thread(chunk_texts, *arguments)
            else:
                split = partial(self._split.remote, *arguments)
                part = await retried("chunking", lambda split=split: reply_to(split()))
            taken += sum(chunks_cost(key, expansion) for key in part if _is_good(key))
            expanded.add(max(0, taken - expanded.held))
            keys += part
        return keys

    async def _vectors(
        self, request: InferenceRequest, expansion: Expansion, spec: ModelSpec, keys: Sequence[Keys]
    ) -> list[Vectors]:
        flat = list(chain.from_iterable(keys))
        parts = await together(self._calls(request, expansion, spec, flat), IN_FLIGHT_BYTES)
        # Views of the parts: one array of them all would be a copy.
        rows = chain.from_iterable(parts)
        return [[(key, next(rows)) for key in chunks] for chunks in keys]

    def _calls(
        self, request: InferenceRequest, expansion: Expansion, spec: ModelSpec, keys: Sequence[str]
    ) -> Iterable[tuple[int, partial]]:
        each = text_bytes(expansion.prefix) + 4 * expansion.dimensions
        sizes = (each + text_bytes(key) for key in keys)
        for place, nbytes in cut(sizes, self._chunk, MESSAGE_BYTES):
            encode = self._encode if nbytes <= MESSAGE_BYTES else self._encode_much
            call = partial(self._encoded, request, encode, spec, expansion.prefix, keys[place])
            yield nbytes + spec.characters, partial(retried, "texts", call)

    async def _encoded(
        self, request: InferenceRequest, encode: DeploymentHandle, spec: ModelSpec, prefix: str, keys: Sequence[str]
    ) -> np.ndarray:
        texts = [prefix + key for key in keys] if prefix else keys
        return answered(await reply_to(to_home(encode, spec).remote(spec, texts, *flags(request))))

    def _too_long(self, text: str) -> ItemError:
        return ItemError(
            f"a text of {len(text)} characters, starting with {text[:40]!r}, is too long: "
            f"at most {self._max_chars} are taken"
        )


def _is_good(key: Keys | ItemError) -> TypeGuard[Keys]:
    return not isinstance(key, ItemError)
