"""Health check of the graph: at least one encoder and one preprocessor are alive and answer.

A replica is asked over the same connections as its calls: as a Ray actor, with the request for its queue length that
Serve's routers send, and if calls go by value, also on their gRPC channel. Neither request waits behind other calls: a
busy replica, even one that accepts no more calls, is healthy and answers at once. A killed replica is noticed when it
is asked, seconds before Serve's controller notices. Whether a replica can work (an encoder needs its device) is for its
`check_health`, after whose failure Serve replaces the replica.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RunningReplica

from deployments.ingress.presence import reach
from deployments.ray_internals import goes_by_reference, known_replicas


async def problem(handles: Mapping[str, DeploymentHandle[Any]], timeout_s: float) -> str | None:
    """The reason why the graph cannot embed, or None if it can.

    Args:
        handles: of the deployments, by their names in the message. `options` has been called on each, or it has been
            used; its calls go by value unless it was made by `ray_internals.by_reference`.
        timeout_s: a deployment none of whose replicas answers in this time is not healthy; all are asked concurrently.
    """
    alive = await asyncio.gather(*(_any_answers(handle, timeout_s) for handle in handles.values()))
    missing = [name for name, lives in zip(handles, alive, strict=True) if not lives]
    return f"no {' and no '.join(missing)} answers" if missing else None


async def _any_answers(handle: DeploymentHandle[Any], timeout_s: float) -> bool:
    """Whether any replica answers; the others are not waited for."""
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
    """Raises an error if calls cannot reach the replica."""
    requests: list[Awaitable[object]] = [replica.get_queue_len(deadline_s=timeout_s)]
    if by_value:
        requests.append(reach(replica, timeout_s))
    await asyncio.gather(*requests)
