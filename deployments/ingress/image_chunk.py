"""Some of a request's pictures on their way: to a preprocessor, and each part that is ready on to an encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from ray import ObjectRef
from ray.serve.handle import DeploymentHandle

from deployments.ingress.gather import Answers, answered, flags, reply_to, strict
from deployments.ingress.image_task import ImageTask, Tally
from deployments.ingress.poison import Poison
from deployments.ingress.retry import is_lost, retried
from deployments.ingress.transfer_share import NO_THREADS, ThreadShares
from deployments.preprocessor.parts import Part
from deployments.routing import to_home
from embedding.errors import ItemError
from embedding.fetch.data_uri import DATA_URI
from embedding.protocol import Vectors


@dataclass(frozen=True, slots=True)
class Way:
    """What all chunks of one request pass.

    Args:
        task: the request.
        prepare: handle of what preprocessors do.
        encode: handle of what encoders do.
        poison: what is not sent to preprocessors again.
        tally: where contents count.
        threads: of the request's transfers.
    """

    task: ImageTask
    prepare: DeploymentHandle
    encode: DeploymentHandle
    poison: Poison
    tally: Tally
    threads: ThreadShares


class ImageChunk:
    """What has been encoded stays, whatever is lost later; the rest is done again.

    Args:
        contents: URLs and data URIs.
    """

    def __init__(self, contents: Sequence[str]) -> None:
        self._contents = contents
        self._answers: list[Vectors | ItemError | None] = [None] * len(contents)
        self._encoding: set[int] = set()
        self._waiting = 0
        self._sent = False
        self._apart = False

    @property
    def downloads(self) -> bool:
        """Whether there is anything to download."""
        return _downloads(self._contents)

    @property
    def answers(self) -> Answers:
        """One for each content, once there are all of them."""
        return [answer for answer in self._answers if answer is not None]

    async def answer(self, way: Way) -> None:
        """Finds all answers."""
        # What lately killed decoders, or kept them for too long, is not sent to them again.
        refused = {i: error for i, content in enumerate(self._contents) if (error := way.poison.error(content))}
        self._note(way, refused)
        await retried("image chunk", lambda: self._go(way))

    async def _go(self, way: Way) -> None:
        """A chunk's way, from the start for what has no answer yet. If it costs a preprocessor, any picture that was
        there may have done it: each of this chunk's is decoded in another process then, which shows a culprit and harms
        nobody else."""
        self._encoding.clear()
        try:
            async with asyncio.TaskGroup() as encodings:
                if not self._apart:
                    try:
                        return await self._prepare(way, encodings)
                    except Exception as error:
                        if not is_lost(error):
                            raise
                        self._apart = True
                await retried("pictures apart", lambda: self._prepare(way, encodings))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _prepare(self, way: Way, encodings: asyncio.TaskGroup) -> None:
        """Has the rest prepared, and each part encoded when it comes."""
        rest = [i for i, answer in enumerate(self._answers) if answer is None and i not in self._encoding]
        contents = [self._contents[i] for i in rest]
        if not contents:
            return
        async with AsyncExitStack() as stack:
            threads = NO_THREADS
            if _downloads(contents):
                threads = await stack.enter_async_context(way.threads.share(self._sent))
            way.tally.change(sent=0 if self._sent else len(self._contents))
            self._sent = True
            stack.callback(self._wait, way, 0)
            parts = way.prepare.remote(contents, way.task.image, way.task.terms(threads), self._apart)
            try:
                async for part in parts:
                    self._take(way, part, rest, encodings)
            except BaseException:
                # Calls by reference go on otherwise.
                parts.cancel()
                raise

    def _take(self, way: Way, part: Part, rest: Sequence[int], encodings: asyncio.TaskGroup) -> None:
        self._wait(way, part.waiting)
        self._note(way, {rest[i]: error for i, error in part.errors.items()})
        if part.pixels is not None:
            places = [rest[i] for i in part.places]
            self._encoding.update(places)
            encodings.create_task(self._encode(way, places, part.pixels))

    async def _encode(self, way: Way, places: Sequence[int], pixels: ObjectRef) -> None:
        task = way.task
        try:
            encoding = to_home(way.encode, task.spec).remote(task.spec, pixels, *flags(task.request))
            rows = answered(await reply_to(encoding))
        except Exception as error:
            # Perhaps it was the preprocessor that was lost, and the pixels with it.
            self._apart = self._apart or is_lost(error)
            raise
        self._note(way, {i: [(self._contents[i], row)] for i, row in zip(places, rows, strict=True)})

    def _note(self, way: Way, answers: Mapping[int, Vectors | ItemError]) -> None:
        for i, answer in answers.items():
            if isinstance(answer, ItemError):
                way.poison.remember(self._contents[i], answer)
            self._answers[i] = answer
        strict(way.task.request, list(answers.values()))
        way.tally.change(done=len(answers))

    def _wait(self, way: Way, contents: int) -> None:
        """So many wait for downloads now."""
        way.tally.change(waiting=contents - self._waiting)
        self._waiting = contents


def _downloads(contents: Sequence[str]) -> bool:
    return not all(content.startswith(DATA_URI) for content in contents)
