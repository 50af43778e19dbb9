"""Pictures: prepared chunk by chunk, and each chunk encoded as soon as it is ready."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.admission import Share
from deployments.gather import Answers, answered, cut, flags, reply_to, strict, together
from deployments.poison import Poison
from deployments.retry import is_lost, retried
from deployments.routing import to_home
from embedding.expansion import Expansion, check_expansion, text_bytes
from embedding.image_spec import ImageSpec
from embedding.models.spec import ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest
from embedding.text import chunks_cost

if TYPE_CHECKING:
    # Not for real: it would bring torch, and an ingress needs none.
    from deployments.preprocessor import Prepared

# Of the contents and pixels of one call, unless a single picture has more.
CALL_BYTES = 16 * 2**20
IN_FLIGHT_BYTES = 64 * 2**20
"""Of the contents and pixels of one request's calls that are on their way at a time, with what each call carries."""

# One pixel, and the smallest that is made of it.
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
BLANK_SPEC = ImageSpec((1, 1), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash")


@dataclass(frozen=True)
class ImageTask:
    """What all chunks of one request share."""

    request: InferenceRequest
    config: ImageConfig
    spec: ModelSpec
    image: ImageSpec

    @cached_property
    def picture_bytes(self) -> int:
        """Of one picture's pixels."""
        height, width = self.image.size
        return 3 * height * width

    @cached_property
    def call_bytes(self) -> int:
        """What goes along with each call."""
        headers = self.config.download_header or {}
        return self.spec.characters + sum(len(name) + len(value) for name, value in headers.items())

    def expanded_bytes(self) -> int:
        """What the request becomes: vectors, the reply, and the pixels that there are at a time."""
        contents = self.request.contents
        vectors = chunks_cost(contents, Expansion("", self.spec.dimensions))
        return vectors + min(IN_FLIGHT_BYTES, len(contents) * self.picture_bytes)


class ImageFanOut:
    """Sends chunks of pictures to preprocessors, and what they prepared to encoders.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        chunk: pictures in one call.
        max_bytes: what one request may become.
    """

    def __init__(self, preprocessor: DeploymentHandle, encoder: DeploymentHandle, chunk: int, max_bytes: int) -> None:
        # By reference even where Serve's throughput mode would send by value: pixels never pass through here.
        self._prepare = preprocessor.options(method_name="prepare", _by_reference=True)
        self._encode = encoder.options(method_name="encode_images", _by_reference=True)
        self._touch = encoder.options(method_name="touch", _by_reference=True)
        self._chunk = chunk
        self._max_bytes = max_bytes
        self._poison = Poison()

    async def warm_up(self) -> None:
        """Has a preprocessor prepare a picture, and an encoder take it as it would take any other."""
        pixels, _ = await self._prepare.remote([BLANK], BLANK_SPEC, 1000, None)
        await self._touch.remote(pixels)

    async def vectorise(self, task: ImageTask, expanded: Share) -> Answers:
        """One answer for each content of the request, in order; what it becomes counts in `expanded`."""
        nbytes = task.expanded_bytes()
        check_expansion(nbytes, self._max_bytes)
        expanded.add(nbytes)
        chunks = await together(self._calls(task), IN_FLIGHT_BYTES)
        return [item for chunk in chunks for item in chunk]

    def _calls(self, task: ImageTask) -> Iterable[tuple[int, partial]]:
        contents = task.request.contents
        sizes = (task.picture_bytes + text_bytes(content) for content in contents)
        for place, nbytes in cut(sizes, self._chunk, CALL_BYTES):
            call = partial(self._answers, task, contents[place])
            yield nbytes + task.call_bytes, partial(retried, "image chunk", call)

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
