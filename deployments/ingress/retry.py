"""Repeats calls whose replica died. That is safe for every call here: downloading and encoding change no state."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from ray import exceptions
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from embedding.errors import Fault, RequestError

logger = logging.getLogger("ray.serve")
T = TypeVar("T")

ATTEMPTS = 4
PAUSE_S = 0.1
"""Before the second attempt; each further pause is twice as long."""
# All errors by which Ray 2.60 reports that a process, a node, or an object is lost, or cannot be reached.
_LOST = (
    exceptions.RayActorError,  # died, unavailable, unschedulable
    exceptions.WorkerCrashedError,
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,  # the memory monitor has killed it
    exceptions.ObjectLostError,  # its owner or its node died, or Ray lost count of its references
    exceptions.ObjectStoreFullError,
    exceptions.OutOfDiskError,
    exceptions.PlasmaObjectNotAvailable,
    exceptions.GetTimeoutError,
    exceptions.RpcError,
    exceptions.RaySystemError,
    exceptions.TaskUnschedulableError,
    exceptions.ActorUnschedulableError,
    exceptions.ActorPlacementGroupRemoved,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
# Calls by value go over gRPC. Serve itself treats UNAVAILABLE as a dead replica; a process that ends while it answers
# can also appear as one of the others.
_LOST_CODES = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DATA_LOSS,
    )
)
# Serve's message for a connection that ends before the replica has accepted the call; it raises a plain RuntimeError.
_NO_CONNECTION = "Unexpected error (StatusCode."


def is_lost(error: BaseException) -> bool:
    """Whether an error means that a replica, or the pixels of a call, were lost; not that the work itself failed."""
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return any(_is_loss(one) for one in (error, cause))


def _is_loss(error: object) -> bool:
    if isinstance(error, grpc.RpcError):
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        return code is None or code in _LOST_CODES
    if type(error) is RuntimeError:
        return str(error).startswith(_NO_CONNECTION)
    return isinstance(error, _LOST)


def as_request_error(error: Exception) -> RequestError:
    """The client's error for an unexpected exception: LOST_REPLICA if a replica was lost, else INTERNAL."""
    if isinstance(error, RequestError):
        return error
    if is_lost(error):
        return RequestError(Fault.LOST_REPLICA, "A replica that this request needed was lost; try again in a moment")
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return RequestError(Fault.INTERNAL, f"{type(cause).__name__}. Please try again later")


async def retried(what: str, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, which is repeated while replicas are lost.

    Args:
        what: name of the work in log lines and in the error message.
        work: starts it.

    Raises:
        RequestError: LOST_REPLICA, if replicas are still being lost after the last attempt.
        Whatever else `work` raises.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_S * 2 ** (attempt - 1))
        try:
            return await work()
        except Exception as error:
            if not is_lost(error):
                raise
            logger.warning(f"{what}: lost a replica ({type(error).__name__}), attempt {attempt + 1} of {ATTEMPTS}")
    message = f"{what}: replicas were lost {ATTEMPTS} times in a row; try again in a moment"
    raise RequestError(Fault.LOST_REPLICA, message)
