"""What is safe to do again when a replica dies: everything here, since downloading and encoding change nothing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from embedding.errors import Fault, RequestError

logger = logging.getLogger("ray.serve")
T = TypeVar("T")

ATTEMPTS = 4
PAUSE_S = 0.1
_LOST = (RayActorError, ObjectLostError, DeploymentUnavailableError, ReplicaUnavailableError)


def is_lost(error: BaseException) -> bool:
    """Whether the work itself did not fail, but the replica or the pixels it needed were lost."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(error, _LOST) or isinstance(cause, _LOST)


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
