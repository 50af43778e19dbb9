"""Whether the graph can embed now: at least one encoder and one preprocessor live and answer.

What is asked is Serve's own question of a replica's load, which passes by the calls that wait for it: a busy replica,
even one that takes no more calls, is healthy and says so at once. A killed one is noticed when it is asked, seconds
before Serve's controller looks. What a replica needs for its work (an encoder its device) is its `check_health`, by
which Serve replaces it.
"""

import asyncio
from collections.abc import Mapping, Sequence

from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RunningReplica


async def trouble(handles: Mapping[str, DeploymentHandle], timeout_s: float) -> str | None:
    """What keeps the graph from embedding, or None.

    Args:
        handles: what is needed, by the name that people know it by. Each has been used, or had `options`, before.
        timeout_s: how long silence counts as life; all are asked side by side.
    """
    alive = await asyncio.gather(*(_any_answers(_known(handle), timeout_s) for handle in handles.values()))
    missing = [name for name, lives in zip(handles, alive, strict=True) if not lives]
    return f"no {' and no '.join(missing)} answers" if missing else None


async def _any_answers(replicas: Sequence[RunningReplica], timeout_s: float) -> bool:
    """Whether one of them answers; the first one is enough, the others are not waited for."""
    asked = {asyncio.ensure_future(replica.get_queue_len(deadline_s=timeout_s)) for replica in replicas}
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


def _known(handle: DeploymentHandle) -> list[RunningReplica]:
    """The replicas to which the handle would send a call now. Serve shows them to request routers only, not to the
    owner of a handle."""
    router = handle._router._asyncio_router._request_router
    return [] if router is None else list(router.curr_replicas.values())
