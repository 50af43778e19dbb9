"""What is safe to do again when a replica dies: everything here, since downloading and encoding change nothing."""

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
# Every way in which Ray 2.60 tells that a process, a node, or an object there is gone, or cannot be reached.
_LOST = (
    exceptions.RayActorError,  # died, unavailable, unschedulable
    exceptions.WorkerCrashedError,
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,  # the memory monitor has killed it
    exceptions.ObjectLostError,  # its owner or its node died, or its references were miscounted
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
# By value, calls go over gRPC. What Serve takes for a dead replica there is UNAVAILABLE; a process that ends in the
# middle of an answer shows as one of these.
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
# Serve's own words for a connection that ends before the replica has taken the call; it has no type for them.
_NO_CONNECTION = "Unexpected error (StatusCode."


def is_lost(error: BaseException) -> bool:
    """Whether the work itself did not fail, but the replica or the pixels it needed were lost."""
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return any(_tells_of_a_loss(one) for one in (error, cause))


def _tells_of_a_loss(error: object) -> bool:
    if isinstance(error, grpc.RpcError):
        code = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
        return code is None or code in _LOST_CODES
    if type(error) is RuntimeError:
        return str(error).startswith(_NO_CONNECTION)
    return isinstance(error, _LOST)


def as_request_error(error: Exception) -> RequestError:
    """What a client is told of an error that nobody expected: OVERLOADED where a replica was lost, else INTERNAL."""
    if isinstance(error, RequestError):
        return error
    if is_lost(error):
        return RequestError(Fault.OVERLOADED, "A replica that this request needed was lost; try again in a moment")
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return RequestError(Fault.INTERNAL, f"{type(cause).__name__}. Please try again later")


async def retried(what: str, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, tried again while replicas are lost.

    Raises:
        RequestError: OVERLOADED, if replicas are still being lost after the last attempt.
        Whatever else `work` raises.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await work()
        except Exception as error:
            if not is_lost(error):
                raise
            logger.warning(f"{what}: lost a replica ({type(error).__name__}), attempt {attempt + 1} of {ATTEMPTS}")
        await asyncio.sleep(PAUSE_S * 2**attempt)
    raise RequestError(Fault.OVERLOADED, f"{what}: replicas were lost {ATTEMPTS} times in a row; try again in a moment")
