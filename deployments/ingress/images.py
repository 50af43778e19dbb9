"""Pictures: sent to preprocessors in chunks; each part of a chunk is encoded as soon as it is ready."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import Load
from deployments.ingress.calls import Answers, run_concurrently, split_by_size, stream_from_replica
from deployments.ingress.image_chunk import ChunkContext, ImageChunk
from deployments.ingress.image_task import IN_FLIGHT_BYTES, ImageTask, Tally
from deployments.ingress.poison import Poison
from deployments.ingress.transfer_share import ThreadShares
from deployments.preprocessor.parts import DownloadOptions
from deployments.ray_internals import by_reference
from embedding.image_spec import ImageSpec
from embedding.memory_estimate import check_expansion, text_bytes
from embedding.meter import Meter

CALL_BYTES = 16 * 2**20
"""Limit of the items and pixels of one call; a single picture may have more."""

# For `warm_up`: a picture of one pixel, resized to one pixel.
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
BLANK_SPEC = ImageSpec((1, 1), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash")


class ImageFanOut:
    """Sends chunks of pictures to preprocessors, and the prepared pictures to encoders.

    Args:
        preprocessor: handle of the preprocessors.
        encoder: handle of the encoders.
        chunk: pictures in one call.
        max_bytes: limit of what one request needs, see `ImageTask.expanded_bytes`.
        meter: counts pictures that are refused without a try.
    """

    def __init__(
        self,
        preprocessor: DeploymentHandle[Any],
        encoder: DeploymentHandle[Any],
        chunk: int,
        max_bytes: int,
        meter: Meter,
    ) -> None:
        # By reference even in Serve's throughput mode, which would send by value: pixels do not pass through here.
        self._prepare = by_reference(preprocessor, method_name="prepare", stream=True)
        self._encode = by_reference(encoder, method_name="encode_images")
        self._touch = by_reference(encoder, method_name="touch")
        self._chunk = chunk
        self._max_bytes = max_bytes
        self._poison = Poison(meter)

    async def warm_up(self) -> None:
        """Opens the connections: a preprocessor prepares one picture, and an encoder receives its pixels."""
        parts = stream_from_replica(self._prepare, [BLANK], BLANK_SPEC, DownloadOptions(1000, None, "warm-up"))
        async for part in parts:
            await self._touch.remote(part.pixels)

    async def embed_images(self, task: ImageTask, load: Load) -> Answers:
        """One answer for each item of the request, in order.

        Args:
            task: the request.
            load: updated with the progress of the items.

        Raises:
            RequestError: the request needs too many bytes; or an item failed and the request wants no individual
                errors; or replicas were lost too often.
        """
        nbytes = task.expanded_bytes(len(task.request.contents))
        check_expansion(nbytes, self._max_bytes)
        load.expanded.add(nbytes)
        chunks = list(self._chunks(task))
        # The number of concurrent calls, if all calls are of about the same size.
        at_once = IN_FLIGHT_BYTES // max((min(nbytes, CALL_BYTES) for nbytes, _ in chunks), default=1)
        threads = ThreadShares(task.threads, sum(chunk.downloads for _, chunk in chunks), at_once)
        context = ChunkContext(task, self._prepare, self._encode, self._poison, Tally(task, load), threads)
        await run_concurrently(((nbytes, partial(chunk.answer, context)) for nbytes, chunk in chunks), IN_FLIGHT_BYTES)
        return [answer for _, chunk in chunks for answer in chunk.answers]

    def _chunks(self, task: ImageTask) -> Iterator[tuple[int, ImageChunk]]:
        items = task.request.contents
        sizes = (task.picture_bytes + text_bytes(item) for item in items)
        for part, nbytes in split_by_size(sizes, self._chunk, CALL_BYTES):
            yield nbytes + task.call_bytes, ImageChunk(items[part])
