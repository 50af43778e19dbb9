"""A chunk of a request's pictures: sent to a preprocessor, and each part that is ready on to an encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef
from ray.serve.handle import DeploymentHandle

from deployments.ingress.calls import (
    Answers,
    call_replica,
    check_answers,
    encode_flags,
    stream_from_replica,
    unwrapped,
)
from deployments.ingress.image_task import ImageTask, Tally
from deployments.ingress.poison import Poison
from deployments.ingress.retry import is_lost, retried
from deployments.ingress.transfer_share import NO_THREADS, ThreadShares
from deployments.preprocessor.parts import Part
from deployments.routing import to_preferred_replica
from embedding.errors import ItemError
from embedding.fetch.data_uri import DATA_URI_PREFIX
from embedding.protocol import Vectors


@dataclass(frozen=True, slots=True)
class ChunkContext:
    """What all chunks of one request use.

    Args:
        task: the request.
        prepare: handle of the preprocessors' method.
        encode: handle of the encoders' method.
        poison: items that are not sent to preprocessors again.
        tally: where the progress of items is counted.
        threads: divides the request's transfers among its chunks.
    """

    task: ImageTask
    prepare: DeploymentHandle[Any]
    encode: DeploymentHandle[Any]
    poison: Poison
    tally: Tally
    threads: ThreadShares


class ImageChunk:
    """One chunk. If a replica is lost, answers that exist are kept and the rest is done again.

    Args:
        items: URLs and data URIs.
    """

    def __init__(self, items: Sequence[str]) -> None:
        self._items = items
        self._answers: list[Vectors | ItemError | None] = [None] * len(items)
        self._encoding: set[int] = set()
        self._waiting = 0
        self._sent = False
        self._in_subprocess = False

    @property
    def downloads(self) -> bool:
        """Whether there is anything to download."""
        return _downloads(self._items)

    @property
    def answers(self) -> Answers:
        """One for each item, after `answer` has returned."""
        return [answer for answer in self._answers if answer is not None]

    async def answer(self, context: ChunkContext) -> None:
        """Finds all answers.

        Raises:
            RequestError: replicas were lost too often; or an item failed and the request wants no individual errors.
        """
        # Items that crashed their decoder or took too long in the last minutes are not sent to a preprocessor.
        refused = {i: error for i, item in enumerate(self._items) if (error := context.poison.error(item))}
        # They count as sent, since the others are sent without them.
        context.tally.change(sent=len(refused))
        if self.downloads and not _downloads([item for i, item in enumerate(self._items) if i not in refused]):
            context.threads.renounce()
        self._note(context, refused)
        await retried("image chunk", lambda: self._prepare_and_encode(context))

    async def _prepare_and_encode(self, context: ChunkContext) -> None:
        """Processes all items without an answer. If a preprocessor dies meanwhile, any picture there may be the cause:
        from then on the pictures of this chunk are decoded in subprocesses, where a crash identifies the picture and
        harms no other request.

        The first preprocessor that dies is not one of the four attempts (`retried`) to decode in subprocesses. If those
        fail too, `answer` does not try again, since a RequestError is no lost replica. `answer` repeats this whole
        method if an encoder was lost, or pixels on their way to it.
        """
        self._encoding.clear()
        try:
            async with asyncio.TaskGroup() as encodings:
                if not self._in_subprocess:
                    try:
                        return await self._prepare(context, encodings)
                    except Exception as error:
                        if not is_lost(error):
                            raise
                        self._in_subprocess = True
                await retried("image chunk in subprocesses", lambda: self._prepare(context, encodings))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _prepare(self, context: ChunkContext, encodings: asyncio.TaskGroup) -> None:
        """Sends the items without an answer to a preprocessor, and starts to encode each part that comes back."""
        task = context.task
        rest = [i for i, answer in enumerate(self._answers) if answer is None and i not in self._encoding]
        items = [self._items[i] for i in rest]
        if not items:
            return
        async with AsyncExitStack() as stack:
            threads = NO_THREADS
            if _downloads(items):
                threads = await stack.enter_async_context(context.threads.share(self._sent))
            context.tally.change(sent=0 if self._sent else len(items))
            self._sent = True
            stack.callback(self._set_waiting, context, 0)
            options = task.download_options(threads)
            parts = stream_from_replica(context.prepare, items, task.image, options, self._in_subprocess)
            try:
                async for part in parts:
                    self._take(context, part, rest, encodings)
            except BaseException:
                # Otherwise calls by reference go on.
                parts.cancel()  # type: ignore[no-untyped-call]
                raise

    def _take(self, context: ChunkContext, part: Part, rest: Sequence[int], encodings: asyncio.TaskGroup) -> None:
        self._set_waiting(context, part.waiting)
        self._note(context, {rest[i]: error for i, error in part.errors.items()})
        if part.pixels is not None:
            indices = [rest[i] for i in part.indices]
            self._encoding.update(indices)
            encodings.create_task(self._encode(context, indices, part.pixels))

    async def _encode(self, context: ChunkContext, indices: Sequence[int], pixels: ObjectRef[Any]) -> None:
        task = context.task
        encode = to_preferred_replica(context.encode, task.spec)
        try:
            rows = unwrapped(await call_replica(encode, task.spec, pixels, *encode_flags(task.request)))
        except Exception as error:
            # It may be the preprocessor that was lost, and its pixels with it.
            self._in_subprocess = self._in_subprocess or is_lost(error)
            raise
        self._note(context, {i: [(self._items[i], row)] for i, row in zip(indices, rows, strict=True)})

    def _note(self, context: ChunkContext, answers: Mapping[int, Vectors | ItemError]) -> None:
        for i, answer in answers.items():
            if isinstance(answer, ItemError):
                context.poison.remember(self._items[i], answer)
            self._answers[i] = answer
        check_answers(context.task.request, answers.values())
        context.tally.change(done=len(answers))

    def _set_waiting(self, context: ChunkContext, items: int) -> None:
        """Sets how many items of the chunk wait for downloads."""
        context.tally.change(waiting=items - self._waiting)
        self._waiting = items


def _downloads(items: Sequence[str]) -> bool:
    return not all(item.startswith(DATA_URI_PREFIX) for item in items)
