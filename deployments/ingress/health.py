"""Whether the graph can embed now: at least one encoder and one preprocessor live and answer.

Each is asked by the ways that calls take to it: as Ray's actor, Serve's own question of a replica's load, and where
calls go by value, on the gRPC channel that carries them. Both pass by calls that wait: a busy replica, even one that
takes no more calls, is healthy and says so at once. A killed one is noticed when it is asked, seconds before Serve's
controller looks. What a replica needs for its work (an encoder its device) is its `check_health`, by which Serve
replaces it.
"""

import asyncio
from collections.abc import Mapping

import grpc
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RunningReplica

from deployments.ray_internals import goes_by_reference, grpc_channel, known_replicas

UNKNOWN_METHOD = "/ray.serve.ASGIService/Answer"


async def trouble(handles: Mapping[str, DeploymentHandle], timeout_s: float) -> str | None:
    """What keeps the graph from embedding, or None.

    Args:
        handles: what is needed, by the name that people know it by. Each has been used, or had `options`, before; its
            calls go by value unless `ray_internals.by_reference` has made it.
        timeout_s: how long silence counts as life; all are asked side by side.
    """
    alive = await asyncio.gather(*(_any_answers(handle, timeout_s) for handle in handles.values()))
    missing = [name for name, lives in zip(handles, alive, strict=True) if not lives]
    return f"no {' and no '.join(missing)} answers" if missing else None


async def _any_answers(handle: DeploymentHandle, timeout_s: float) -> bool:
    """Whether a replica answers; the first one is enough, the others are not waited for."""
    by_value = not goes_by_reference(handle)
    asked = {asyncio.ensure_future(_answers(replica, by_value, timeout_s)) for replica in known_replicas(handle)}
    try:
        async with asyncio.timeout(timeout_s):
            while asked:
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                if None in [one.exception() for one in done]:
                    return True
    except TimeoutError:
        pass
    finally:
        for one in asked:
            one.cancel()
    return False


async def _answers(replica: RunningReplica, by_value: bool, timeout_s: float) -> None:
    """Raises whatever keeps calls from it."""
    ways = [replica.get_queue_len(deadline_s=timeout_s)]
    if by_value:
        ways.append(_answers_by_value(replica, timeout_s))
    await asyncio.gather(*ways)


async def _answers_by_value(replica: RunningReplica, timeout_s: float) -> None:
    """Calls a method that no replica has: to say so it must have been reached, and no work is counted for it."""
    call = grpc_channel(replica).unary_unary(UNKNOWN_METHOD)
    try:
        await call(b"", timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
