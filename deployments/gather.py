"""Small tools of the fan-out: cutting, running side by side, reading answers."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from ray.serve.handle import DeploymentResponse

from embedding.errors import Fault, ItemError, RequestError
from embedding.protocol import InferenceRequest, Vectors

T = TypeVar("T")
Answers = list[Vectors | ItemError]
"""One answer for each content, in order."""


def cut(contents: Sequence[T], size: int) -> list[Sequence[T]]:
    """Contiguous chunks of at most `size`."""
    return [contents[start : start + size] for start in range(0, len(contents), size)]


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first failure cancels the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
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
