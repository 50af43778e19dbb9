"""Pictures: prepared chunk by chunk, and what is ready of each encoded at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ray.serve.handle import DeploymentHandle

from deployments.ingress.admission import Load
from deployments.ingress.gather import Answers, cut, together
from deployments.ingress.image_chunk import ImageChunk, Way
from deployments.ingress.image_task import IN_FLIGHT_BYTES, ImageTask, Tally
from deployments.ingress.poison import Poison
from deployments.ingress.transfer_share import ThreadShares
from deployments.preprocessor.parts import DownloadTerms
from deployments.ray_internals import by_reference
from embedding.expansion import check_expansion, text_bytes
from embedding.image_spec import ImageSpec

# Of the contents and pixels of one call, unless a single picture has more.
CALL_BYTES = 16 * 2**20

# One pixel, and the smallest that is made of it.
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
BLANK_SPEC = ImageSpec((1, 1), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash")


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
        self._prepare = by_reference(preprocessor, method_name="prepare", stream=True)
        self._encode = by_reference(encoder, method_name="encode_images")
        self._touch = by_reference(encoder, method_name="touch")
        self._chunk = chunk
        self._max_bytes = max_bytes
        self._poison = Poison()

    async def warm_up(self) -> None:
        """Has a preprocessor prepare a picture, and an encoder take it as it would take any other."""
        async for part in self._prepare.remote([BLANK], BLANK_SPEC, DownloadTerms(1000, None, "warm-up")):
            await self._touch.remote(part.pixels)

    async def vectorise(self, task: ImageTask, load: Load) -> Answers:
        """One answer for each content of the request, in order; `load` is kept informed of what they do."""
        nbytes = task.expanded_bytes(len(task.request.contents))
        check_expansion(nbytes, self._max_bytes)
        load.expanded.add(nbytes)
        chunks = list(self._chunks(task))
        # As many calls as may be on their way, unless contents of very different size share them.
        at_once = IN_FLIGHT_BYTES // max((min(nbytes, CALL_BYTES) for nbytes, _ in chunks), default=1)
        threads = ThreadShares(task.threads, sum(chunk.downloads for _, chunk in chunks), at_once)
        way = Way(task, self._prepare, self._encode, self._poison, Tally(task, load), threads)
        await together(((nbytes, partial(chunk.answer, way)) for nbytes, chunk in chunks), IN_FLIGHT_BYTES)
        return [answer for _, chunk in chunks for answer in chunk.answers]

    def _chunks(self, task: ImageTask) -> Iterator[tuple[int, ImageChunk]]:
        contents = task.request.contents
        sizes = (task.picture_bytes + text_bytes(content) for content in contents)
        for place, nbytes in cut(sizes, self._chunk, CALL_BYTES):
            yield nbytes + task.call_bytes, ImageChunk(contents[place])
