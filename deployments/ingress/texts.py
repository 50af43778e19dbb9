"""Texts: split into chunks if the request asks for it, prefixed, and sent to encoders many at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeGuard

from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import AdmissionShare
from deployments.ingress.calls import (
    Answers,
    call_replica,
    check_answers,
    encode_flags,
    run_concurrently,
    split_by_size,
    unwrapped,
)
from deployments.ingress.retry import retried
from deployments.ray_internals import by_reference
from deployments.routing import to_preferred_replica
from embedding import series
from embedding.errors import ErrorKind, ItemError
from embedding.memory_estimate import Expansion, check_expansion, text_bytes
from embedding.meter import Meter
from embedding.models.model import Rows
from embedding.models.spec import ModelSpec
from embedding.protocol import ChunkConfig, InferenceRequest, TextConfig, Vectors
from embedding.text.chunks import chunk_texts, chunks_cost

INLINE_CHARS = 100
"""If all texts of a request together have at most this many characters, they are split into chunks in the ingress,
since it takes less than a millisecond. Splitting holds Python's lock: more text would delay all other requests."""
SPLIT_CHARS = 250_000
"""Characters of the texts that a preprocessor splits in one call; a single text may be longer. A request makes one such
call at a time, so that the bytes of its chunks are counted before more of them are made."""
MESSAGE_BYTES = 3_000_000
"""Limit of a call by gRPC, which takes messages of up to 4 MiB. A single larger text goes through the object store."""
IN_FLIGHT_BYTES = 32 * 2**20
"""Limit of the texts and vectors of one request's concurrent calls."""
Keys = list[str]
"""The texts of one item that are encoded: itself, or its chunks. In the reply each is the key of its vector."""


class TextFanOut:
    """Sends texts to encoders; texts that are to be split into chunks go to preprocessors first.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        chunk: texts in one call.
        max_chars: characters of one item; a longer item gets an error of its own.
        max_bytes: limit of the keys, prefixed texts, vectors and reply of one request.
        meter: counts texts that get an error.
    """

    def __init__(
        self,
        preprocessor: DeploymentHandle[Any],
        encoder: DeploymentHandle[Any],
        chunk: int,
        max_chars: int,
        max_bytes: int,
        meter: Meter,
    ) -> None:
        # By reference: the chunks of one item may be larger than a gRPC message.
        self._split = by_reference(preprocessor, method_name="chunk_texts")
        self._encode = encoder.options(method_name="encode_texts")
        self._encode_large = by_reference(encoder, method_name="encode_texts")
        self._chunk = chunk
        self._max_chars = max_chars
        self._max_bytes = max_bytes
        self._meter = meter

    async def embed_texts(
        self, request: InferenceRequest, config: TextConfig, spec: ModelSpec, expanded: AdmissionShare
    ) -> Answers:
        """One answer for each item of the request, in order.

        Args:
            request: the request.
            config: its preprocessing of texts.
            spec: the model.
            expanded: where the bytes of its keys, texts, vectors and reply are counted.

        Raises:
            RequestError: the request needs too many bytes; or the model cannot be loaded; or an item failed and the
                request wants no individual errors.
        """
        expansion = Expansion(config.text_prefix or "", spec.dimensions)
        keys = await self._keys(request.contents, config, expansion, expanded)
        errors = [key for key in keys if isinstance(key, ItemError)]
        self._meter.add(series.ERRORS, len(errors), series.ErrorStage.TEXT, ErrorKind.TOO_LARGE)
        check_answers(request, errors)
        split = [key for key in keys if _is_good(key)]
        good = iter(await self._vectors(request, expansion, spec, split) if split else ())
        return [key if isinstance(key, ItemError) else next(good) for key in keys]

    async def _keys(
        self, items: Sequence[str], config: TextConfig, expansion: Expansion, expanded: AdmissionShare
    ) -> list[Keys | ItemError]:
        keys = [self._too_long(item) if len(item) > self._max_chars else [item] for item in items]
        whole = [key[0] for key in keys if _is_good(key)]
        # The minimum; chunks are added later.
        least = chunks_cost(whole, expansion)
        check_expansion(least, self._max_bytes)
        expanded.add(least)
        if config.chunk_config is None or not whole:
            return keys
        chunks = iter(await self._chunked(whole, config.chunk_config, expansion, expanded))
        return [next(chunks) if _is_good(key) else key for key in keys]

    async def _chunked(
        self, items: Sequence[str], config: ChunkConfig, expansion: Expansion, expanded: AdmissionShare
    ) -> list[Keys | ItemError]:
        windows = (config.split_method, config.split_length, config.split_overlap, expansion)
        inline = sum(map(len, items)) <= INLINE_CHARS
        taken = 0
        keys: list[Keys | ItemError] = []
        for place, _ in split_by_size(map(len, items), len(items), SPLIT_CHARS):
            arguments = (items[place], *windows, self._max_bytes - taken)
            if inline:
                # In a thread, since the first call loads NLTK.
                part = await asyncio.to_thread(chunk_texts, *arguments)
            else:
                part = await retried("chunking", partial(call_replica, self._split, *arguments))
            taken += sum(chunks_cost(key, expansion) for key in part if _is_good(key))
            expanded.add(max(0, taken - expanded.held))
            keys += part
        return keys

    async def _vectors(
        self, request: InferenceRequest, expansion: Expansion, spec: ModelSpec, keys: Sequence[Keys]
    ) -> list[Vectors]:
        flat = list(chain.from_iterable(keys))
        parts = await run_concurrently(self._calls(request, expansion, spec, flat), IN_FLIGHT_BYTES)
        # Views into the parts: joining them into one array would copy them.
        rows = chain.from_iterable(parts)
        return [[(key, next(rows)) for key in chunks] for chunks in keys]

    def _calls(
        self, request: InferenceRequest, expansion: Expansion, spec: ModelSpec, keys: Sequence[str]
    ) -> Iterable[tuple[int, Callable[[], Awaitable[Rows]]]]:
        each = text_bytes(expansion.prefix) + 4 * expansion.dimensions
        sizes = (each + text_bytes(key) for key in keys)
        for place, nbytes in split_by_size(sizes, self._chunk, MESSAGE_BYTES):
            encode = self._encode if nbytes <= MESSAGE_BYTES else self._encode_large
            call = partial(self._encoded, request, encode, spec, expansion.prefix, keys[place])
            yield nbytes + spec.characters, partial(retried, "texts", call)

    async def _encoded(
        self,
        request: InferenceRequest,
        encode: DeploymentHandle[Any],
        spec: ModelSpec,
        prefix: str,
        keys: Sequence[str],
    ) -> Rows:
        texts = [prefix + key for key in keys] if prefix else keys
        answer = await call_replica(to_preferred_replica(encode, spec), spec, texts, *encode_flags(request))
        rows: Rows = unwrapped(answer)
        return rows

    def _too_long(self, text: str) -> ItemError:
        return ItemError(
            f"a text of {len(text)} characters, starting with {text[:40]!r}, is too long: "
            f"at most {self._max_chars} are taken"
        )


def _is_good(key: Keys | ItemError) -> TypeGuard[Keys]:
    return not isinstance(key, ItemError)
