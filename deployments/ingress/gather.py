"""Small tools of the fan-out: cutting, running side by side, reading answers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from ray.serve.handle import DeploymentResponse

from embedding.errors import Fault, ItemError, RequestError
from embedding.protocol import InferenceRequest, Vectors

T = TypeVar("T")
Answers = list[Vectors | ItemError]
"""One answer for each content, in order."""


def cut(sizes: Iterable[int], most_items: int, most_bytes: int) -> Iterator[tuple[slice, int]]:
    """Contiguous parts of at most so many items, and at most so many bytes unless a single item has more.

    Yields:
        Each part's place and bytes.
    """
    start, end, held = 0, 0, 0
    for size in sizes:
        if end > start and (end - start == most_items or held + size > most_bytes):
            yield slice(start, end), held
            start, held = end, 0
        end += 1
        held += size
    if end > start:
        yield slice(start, end), held


async def together(work: Iterable[tuple[int, Callable[[], Awaitable[T]]]], most_bytes: int) -> list[T]:
    """All results in order; the first failure cancels the rest.

    Args:
        work: bytes that each takes while it runs, and what begins it.
        most_bytes: that those which run side by side may take, unless one alone takes more.
    """
    tasks: list[asyncio.Task[T]] = []
    held = 0
    ended = asyncio.Event()

    async def run(nbytes: int, begin: Callable[[], Awaitable[T]]) -> T:
        nonlocal held
        try:
            return await begin()
        finally:
            held -= nbytes
            ended.set()

    try:
        async with asyncio.TaskGroup() as group:
            for nbytes, begin in work:
                while held and held + nbytes > most_bytes:
                    ended.clear()
                    await ended.wait()
                held += nbytes
                tasks.append(group.create_task(run(nbytes, begin)))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def reply_to(call: DeploymentResponse) -> Any:
    """The answer to a call, which is cancelled together with its caller.

    Serve does so itself when a client hangs up, but not when a time limit or the failure of another chunk ends the
    wait: calls by reference would go on then.
    """
    try:
        return await call
    except asyncio.CancelledError:
        call.cancel()
        raise


def answered(answer: Any) -> Any:
    """A replica's answer; a refusal, which replicas send as a value, is raised here."""
    if isinstance(answer, RequestError):
        raise answer
    return answer


def strict(request: InferenceRequest, items: Answers) -> Answers:
    """The items, unless one failed and the request wants no individual errors: then the whole request is refused."""
    if not request.return_individual_error:
        for item in items:
            if isinstance(item, ItemError):
                raise RequestError(Fault.REFUSED, item.message)
    return items


def flags(request: InferenceRequest) -> tuple[bool, bool]:
    """Normalised or not; urgent or not: Marqo sends `useInferenceCache` with searches, and never when it indexes."""
    return request.model_settings.normalize_embeddings, request.use_inference_cache
