"""Texts: prefixed, cut into chunks where the request asks for it, and encoded many at a time."""

import asyncio
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.gather import Answers, answered, cut, flags, reply_to, strict, together
from deployments.retry import retried
from deployments.routing import to_home
from embedding.errors import ItemError
from embedding.models.spec import ModelSpec
from embedding.protocol import InferenceRequest, TextConfig, Vectors
from embedding.text import chunk_text


class TextFanOut:
    """Sends texts to encoders.

    Args:
        encoder: handle of the encoders.
        chunk: texts in one call.
        max_chars: characters of one content; a longer one is its own error.
    """

    def __init__(self, encoder: DeploymentHandle, chunk: int, max_chars: int) -> None:
        self._encode = encoder.options(method_name="encode_texts")
        self._chunk = chunk
        self._max_chars = max_chars

    async def vectorise(self, request: InferenceRequest, config: TextConfig, spec: ModelSpec) -> Answers:
        """One answer for each content of the request, in order."""
        errors = {i: self._too_long(text) for i, text in enumerate(request.contents) if len(text) > self._max_chars}
        strict(request, list(errors.values()))
        keys = await _keys([text for i, text in enumerate(request.contents) if i not in errors], config)
        good = iter(await self._vectors(request, config, spec, keys) if keys else ())
        return [errors.get(i) or next(good) for i in range(len(request.contents))]

    async def _vectors(
        self, request: InferenceRequest, config: TextConfig, spec: ModelSpec, keys: Sequence[Sequence[str]]
    ) -> list[Vectors]:
        prefix = config.text_prefix or ""
        texts = [prefix + key for chunks in keys for key in chunks]

        async def encoded(chunk: Sequence[str]) -> np.ndarray:
            return answered(await reply_to(to_home(self._encode, spec).remote(spec, chunk, *flags(request))))

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


async def _keys(contents: Sequence[str], config: TextConfig) -> list[list[str]]:
    """The keys of each content: itself, or the chunks that it is cut into."""
    chunking = config.chunk_config
    if chunking is None:
        return [[content] for content in contents]

    def chunked() -> list[list[str]]:
        return [
            chunk_text(content, chunking.split_method, chunking.split_length, chunking.split_overlap)
            for content in contents
        ]

    # Sentence splitting takes milliseconds for a page: other requests go on meanwhile.
    return await asyncio.to_thread(chunked)
