"""Who asks whom: one request fanned out in chunks to preprocessors and encoders, and gathered in order."""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
from ray.serve.handle import DeploymentHandle

from embedding.errors import Fault, ItemError, RequestError
from embedding.image_spec import ImageSpec
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest, TextConfig, Vectors
from embedding.text import chunk_text

T = TypeVar("T")
KNOWN_MODELS = 4096


class Pipeline:
    """Turns requests into vectors through the handles of the other two deployments.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        image_chunk: pictures in one call.
        text_chunk: texts in one call.
    """

    def __init__(
        self, preprocessor: DeploymentHandle, encoder: DeploymentHandle, image_chunk: int, text_chunk: int
    ) -> None:
        # By reference even where Serve's throughput mode would send by value: pixels never pass through here.
        self._prepare = preprocessor.options(method_name="prepare", _by_reference=True)
        self._encode_images = encoder.options(method_name="encode_images", _by_reference=True)
        self._encoder = encoder
        self._image_chunk = image_chunk
        self._text_chunk = text_chunk
        self._known: OrderedDict[ModelSpec, ModelInfo] = OrderedDict()

    async def vectorise(self, request: InferenceRequest) -> list[Vectors | ItemError]:
        """One answer for each content, in order.

        Raises:
            RequestError: the model cannot be had; or one content failed and the request wants no individual errors.
        """
        spec = ModelSpec.from_config(request.model_settings, request.device)
        info = await self._describe(spec)
        config = request.preprocessing_config
        if isinstance(config, ImageConfig) and info.image is not None:
            return await self._vectorise_images(request, spec, info.image, config)
        # A model without an image encoder takes an image's URL as text, as Marqo's servers do.
        return await self._vectorise_texts(request, spec, config if isinstance(config, TextConfig) else TextConfig())

    async def _describe(self, spec: ModelSpec) -> ModelInfo:
        known = self._known.get(spec)
        if known is not None:
            return known
        info = _answered(await self._encoder.describe.remote(spec))
        self._known[spec] = info
        if len(self._known) > KNOWN_MODELS:
            self._known.popitem(last=False)
        return info

    async def _vectorise_images(
        self, request: InferenceRequest, spec: ModelSpec, image: ImageSpec, config: ImageConfig
    ) -> list[Vectors | ItemError]:
        async def vectorise_chunk(contents: Sequence[str]) -> list[Vectors | ItemError]:
            pixels, errors = await self._prepare.remote(
                contents, image, config.download_timeout_ms, config.download_header
            )
            if errors and not request.return_individual_error:
                raise RequestError(Fault.REFUSED, next(iter(errors.values())).message)
            rows: Iterable[np.ndarray] = ()
            if pixels is not None:
                rows = _answered(await self._encode_images.remote(spec, pixels, *_flags(request)))
            good = iter(rows)
            return [errors.get(i) or [(content, next(good))] for i, content in enumerate(contents)]

        chunks = [vectorise_chunk(chunk) for chunk in _cut(request.contents, self._image_chunk)]
        return [item for chunk in await _together(chunks) for item in chunk]

    async def _vectorise_texts(
        self, request: InferenceRequest, spec: ModelSpec, config: TextConfig
    ) -> list[Vectors | ItemError]:
        keys = await _chunked(request.contents, config)
        prefix = config.text_prefix or ""
        texts = [prefix + key for chunks in keys for key in chunks]

        async def encode(chunk: Sequence[str]) -> np.ndarray:
            return _answered(await self._encoder.encode_texts.remote(spec, chunk, *_flags(request)))

        parts = await _together(encode(chunk) for chunk in _cut(texts, self._text_chunk))
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        bounds = accumulate((len(chunks) for chunks in keys), initial=0)
        return [
            list(zip(chunks, rows[start:end], strict=True))
            for chunks, (start, end) in zip(keys, pairwise(bounds), strict=True)
        ]


def _cut(contents: Sequence[str], size: int) -> list[Sequence[str]]:
    return [contents[start : start + size] for start in range(0, len(contents), size)]


def _flags(request: InferenceRequest) -> tuple[bool, bool]:
    """Normalised or not; urgent or not: Marqo sends `useInferenceCache` with searches, and never when it indexes."""
    return request.model_settings.normalize_embeddings, request.use_inference_cache


async def _chunked(contents: Sequence[str], config: TextConfig) -> list[list[str]]:
    """The keys of each content: itself, or the chunks that it is cut into."""
    chunking = config.chunk_config
    if chunking is None:
        return [[content] for content in contents]

    def cut() -> list[list[str]]:
        return [
            chunk_text(content, chunking.split_method, chunking.split_length, chunking.split_overlap)
            for content in contents
        ]

    # Sentence splitting takes milliseconds for a page: other requests go on meanwhile.
    return await asyncio.to_thread(cut)


def _answered(answer: Any) -> Any:
    if isinstance(answer, RequestError):
        raise answer
    return answer


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure cancels the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
