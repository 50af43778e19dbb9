"""Texts: prefixed, cut into chunks where the request asks for it, and encoded many at a time."""

import asyncio
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeGuard

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.gather import Answers, answered, cut, flags, reply_to, strict, together
from deployments.retry import retried
from deployments.routing import to_home
from embedding.errors import ItemError
from embedding.models.spec import ModelSpec
from embedding.protocol import ChunkConfig, InferenceRequest, TextConfig, Vectors
from embedding.text import MAX_CHUNK_CHARACTERS, chunk_texts, too_many_characters

# What costs less than a millisecond to split, whatever it holds, is split here. Splitting holds Python's lock, so more
# of it would hold up everybody else's requests.
INLINE_CHARS = 100
# Of the texts that a preprocessor splits in one call, unless a single one is longer.
SPLIT_CHARS = 250_000
SPLIT_CALLS = 4
"""Calls of one request that are on their way at a time: a request does not take all preprocessors for itself."""

# Between replicas, gRPC takes messages of up to 4 MiB. What may come near that goes through the object store.
MESSAGE_BYTES = 3_000_000
CHARACTER_BYTES = 4
MODEL_DIMENSIONS = 4096
"""No model has more, but a `random` one, which has as many as its properties say."""

Keys = list[str]
"""Of one content: itself, or the chunks that it is cut into."""


class TextFanOut:
    """Sends texts to encoders, and long ones that are to be cut into chunks to preprocessors first.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        chunk: texts in one call.
        max_chars: characters of one content; a longer one is its own error.
    """

    def __init__(self, preprocessor: DeploymentHandle, encoder: DeploymentHandle, chunk: int, max_chars: int) -> None:
        # By reference: the chunks of one content may be larger than a message may be.
        self._split = preprocessor.options(method_name="chunk_texts", _by_reference=True)
        self._encode = encoder.options(method_name="encode_texts")
        self._encode_much = encoder.options(method_name="encode_texts", _by_reference=True)
        self._chunk = chunk
        self._max_chars = max_chars

    async def vectorise(self, request: InferenceRequest, config: TextConfig, spec: ModelSpec) -> Answers:
        """One answer for each content of the request, in order."""
        keys = await self._keys(request.contents, config)
        strict(request, [key for key in keys if isinstance(key, ItemError)])
        split = [key for key in keys if _is_good(key)]
        good = iter(await self._vectors(request, config, spec, split) if split else ())
        return [key if isinstance(key, ItemError) else next(good) for key in keys]

    async def _keys(self, contents: Sequence[str], config: TextConfig) -> list[Keys | ItemError]:
        keys = [self._too_long(content) if len(content) > self._max_chars else [content] for content in contents]
        if config.chunk_config is None:
            return keys
        whole = [key[0] for key in keys if _is_good(key)]
        chunks = iter(await self._chunked(whole, config.chunk_config) if whole else ())
        return [next(chunks) if _is_good(key) else key for key in keys]

    async def _chunked(self, contents: Sequence[str], config: ChunkConfig) -> list[Keys | ItemError]:
        windows = (config.split_method, config.split_length, config.split_overlap)
        if sum(map(len, contents)) <= INLINE_CHARS:
            # In a thread, since the very first one loads NLTK.
            return await asyncio.to_thread(chunk_texts, contents, *windows)
        turn = asyncio.Semaphore(SPLIT_CALLS)
        characters = 0

        async def split(batch: Sequence[str]) -> list[Keys | ItemError]:
            nonlocal characters
            async with turn:
                part = await retried("chunking", lambda: reply_to(self._split.remote(batch, *windows)))
            for i, key in enumerate(part):
                characters += 0 if isinstance(key, ItemError) else sum(map(len, key))
                if characters > MAX_CHUNK_CHARACTERS:
                    part[i] = ItemError(too_many_characters(config.split_length, config.split_overlap))
            return part

        parts = await together(split(batch) for batch in _batches(contents))
        return [key for part in parts for key in part]

    async def _vectors(
        self, request: InferenceRequest, config: TextConfig, spec: ModelSpec, keys: Sequence[Keys]
    ) -> list[Vectors]:
        prefix = config.text_prefix or ""
        texts = [prefix + key for chunks in keys for key in chunks]
        row_bytes = 4 * _dimensions(spec)

        async def encoded(chunk: Sequence[str]) -> np.ndarray:
            size = CHARACTER_BYTES * sum(map(len, chunk)) + row_bytes * len(chunk)
            encode = self._encode if size <= MESSAGE_BYTES else self._encode_much
            return answered(await reply_to(to_home(encode, spec).remote(spec, chunk, *flags(request))))

        parts = await together(
            retried("texts", lambda chunk=chunk: encoded(chunk)) for chunk in cut(texts, self._chunk)
        )
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        bounds = accumulate((len(chunks) for chunks in keys), initial=0)
        return [
            list(zip(chunks, rows[start:end], strict=True))
            for chunks, (start, end) in zip(keys, pairwise(bounds), strict=True)
        ]

    def _too_long(self, text: str) -> ItemError:
        return ItemError(
            f"a text of {len(text)} characters, starting with {text[:40]!r}, is too long: "
            f"at most {self._max_chars} are taken"
        )


def _is_good(key: Keys | ItemError) -> TypeGuard[Keys]:
    return not isinstance(key, ItemError)


def _dimensions(spec: ModelSpec) -> int:
    given = spec.properties.get("dimensions")
    return max(given, MODEL_DIMENSIONS) if isinstance(given, int) else MODEL_DIMENSIONS


def _batches(contents: Sequence[str]) -> list[list[str]]:
    batches: list[list[str]] = []
    room = 0
    for content in contents:
        if len(content) > room:
            batches.append([])
            room = SPLIT_CHARS
        batches[-1].append(content)
        room -= len(content)
    return batches
