"""Pictures: prepared chunk by chunk, and each chunk encoded as soon as it is ready."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.gather import Answers, answered, cut, flags, reply_to, strict, together
from deployments.poison import Poison
from deployments.retry import is_lost, retried
from deployments.routing import to_home
from embedding.image_spec import ImageSpec
from embedding.models.spec import ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest

if TYPE_CHECKING:
    # Not for real: it would bring torch, and an ingress needs none.
    from deployments.preprocessor import Prepared

# One pixel, and the smallest that is made of it.
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
BLANK_SPEC = ImageSpec((1, 1), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash")


@dataclass(frozen=True, slots=True)
class ImageTask:
    """What all chunks of one request share."""

    request: InferenceRequest
    config: ImageConfig
    spec: ModelSpec
    image: ImageSpec


class ImageFanOut:
    """Sends chunks of pictures to preprocessors, and what they prepared to encoders.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        chunk: pictures in one call.
    """

    def __init__(self, preprocessor: DeploymentHandle, encoder: DeploymentHandle, chunk: int) -> None:
        # By reference even where Serve's throughput mode would send by value: pixels never pass through here.
        self._prepare = preprocessor.options(method_name="prepare", _by_reference=True)
        self._encode = encoder.options(method_name="encode_images", _by_reference=True)
        self._touch = encoder.options(method_name="touch", _by_reference=True)
        self._chunk = chunk
        self._poison = Poison()

    async def warm_up(self) -> None:
        """Has a preprocessor prepare a picture, and an encoder take it as it would take any other."""
        pixels, _ = await self._prepare.remote([BLANK], BLANK_SPEC, 1000, None)
        await self._touch.remote(pixels)

    async def vectorise(self, task: ImageTask) -> Answers:
        """One answer for each content of the request, in order."""
        chunks = await together(
            retried("image chunk", lambda chunk=chunk: self._answers(task, chunk))
            for chunk in cut(task.request.contents, self._chunk)
        )
        return [item for chunk in chunks for item in chunk]

    async def _answers(self, task: ImageTask, contents: Sequence[str]) -> Answers:
        """A chunk's answers; what lately killed decoders, or kept them for too long, is not sent to them again."""
        refused = {i: error for i, content in enumerate(contents) if (error := self._poison.error(content))}
        if not refused:
            return await self._encoded(task, contents)
        accepted = [content for i, content in enumerate(contents) if i not in refused]
        rest = iter(await self._encoded(task, accepted) if accepted else ())
        return strict(task.request, [refused.get(i) or next(rest) for i in range(len(contents))])

    async def _encoded(self, task: ImageTask, contents: Sequence[str]) -> Answers:
        pixels, errors = await self._prepared(task, contents)
        for i, error in errors.items():
            self._poison.remember(contents[i], error)
        rows: Iterable[np.ndarray] = ()
        if pixels is not None:
            encoding = to_home(self._encode, task.spec).remote(task.spec, pixels, *flags(task.request))
            rows = answered(await reply_to(encoding))
        good = iter(rows)
        return strict(task.request, [errors.get(i) or [(content, next(good))] for i, content in enumerate(contents)])

    async def _prepared(self, task: ImageTask, contents: Sequence[str]) -> Prepared:
        """A chunk, prepared. If that costs a preprocessor, any picture that was there may have done it: each of this
        chunk's is decoded in another process then, which shows a culprit and harms nobody else."""
        config = task.config
        prepare = partial(
            self._prepare.remote, contents, task.image, config.download_timeout_ms, config.download_header
        )
        try:
            return await reply_to(prepare())
        except Exception as error:
            if not is_lost(error):
                raise
        return await retried("pictures apart", lambda: reply_to(prepare(apart=True)))
