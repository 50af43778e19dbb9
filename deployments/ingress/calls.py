"""Helpers of the fan-out: splitting work into calls, running them concurrently and in time, reading their answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from deployments.ingress.presence import presence_checked
from embedding.errors import Fault, ItemError, RequestError
from embedding.protocol import InferenceRequest, Vectors

T = TypeVar("T")
Answers = list[Vectors | ItemError]
"""One answer for each item, in order."""


def split_by_size(sizes: Iterable[int], most_items: int, most_bytes: int) -> Iterator[tuple[slice, int]]:
    """Splits a sequence into contiguous parts.

    Args:
        sizes: bytes of each item.
        most_items: limit of the items in a part.
        most_bytes: limit of the bytes in a part; a single item may have more.

    Yields:
        The slice of each part, and its bytes.
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


async def run_concurrently(work: Iterable[tuple[int, Callable[[], Awaitable[T]]]], most_bytes: int) -> list[T]:
    """Runs coroutines concurrently, within a limit of bytes; the first failure cancels the rest.

    Args:
        work: for each coroutine the bytes that it takes while it runs, and a function that makes it.
        most_bytes: limit of the bytes at any time; a single coroutine may take more.

    Returns:
        All results, in order.
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


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Cancels what is awaited in the context after that time.

    Raises:
        RequestError: TIMEOUT, the time is over.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestError(Fault.TIMEOUT, f"The request was not answered within {seconds:g} s") from None


async def call_replica(handle: DeploymentHandle[Any], *args: Any) -> Any:
    """Calls a replica and returns its answer; the call is cancelled when its caller is, and fails if the replica's
    machine is lost.

    Serve itself cancels calls when a client hangs up, but not when a time limit or the failure of another chunk ends
    the wait: calls by reference would go on then.
    """
    call = handle.remote(*args)
    try:
        with presence_checked(handle):
            return await call
    except asyncio.CancelledError:
        call.cancel()  # type: ignore[no-untyped-call]
        raise


async def call_all_replicas(handle: DeploymentHandle[Any], method: str, *args: Any) -> list[Any]:
    """Calls a method of each replica, and returns their answers when all have come."""
    calls = handle.broadcast(method, *args)
    with presence_checked(handle):
        return list(await calls.results_async())


def stream_from_replica(handle: DeploymentHandle[Any], *args: Any) -> DeploymentResponseGenerator[Any]:
    """Calls a replica with a handle that has the option `stream`; returns the stream of its answers."""
    # What `remote` returns depends on the handle's options, which Ray's annotation does not express.
    return cast(DeploymentResponseGenerator[Any], handle.remote(*args))


def unwrapped(answer: Any) -> Any:
    """A replica's answer. Replicas return RequestErrors as values; they are raised here."""
    if isinstance(answer, RequestError):
        raise answer
    return answer


def check_answers(request: InferenceRequest, answers: Iterable[Vectors | ItemError]) -> None:
    """Refuses the whole request if an item failed and the request wants no individual errors.

    Raises:
        RequestError: REFUSED.
    """
    if not request.return_individual_error:
        for answer in answers:
            if isinstance(answer, ItemError):
                raise RequestError(Fault.REFUSED, answer.message)


def encode_flags(request: InferenceRequest) -> tuple[bool, bool]:
    """The arguments `normalized` and `urgent` of an encoder's methods. Marqo sends `useInferenceCache` with searches,
    and never when it indexes."""
    return request.model_settings.normalize_embeddings, request.use_inference_cache
