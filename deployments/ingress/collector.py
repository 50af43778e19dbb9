"""Asks every replica of the graph for its statistics, each with a time limit: one that does not answer is named, and
delays nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RunningReplica

from deployments.ingress.growth import Collection, Limits, Replica
from deployments.ray_internals import ask_replica, deployment_config, known_replicas
from deployments.replica_stats import ReplicaStats

logger = logging.getLogger("ray.serve")

ANSWER_S = 1.5
"""How long a replica may take to answer. A busy one answers within milliseconds."""
LIST_S = 5.0
"""How long a new handle may take to learn which replicas there are."""
LOOK_S = 0.02


class Collector:
    """Asks the replicas of some deployments.

    Args:
        handles: of the deployments, by their names. `options` has been called on each, or it has been used.
    """

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._are_new = True

    async def collect(self) -> Collection:
        """The statistics of all replicas, asked at the same time. Never fails."""
        if self._are_new:
            await asyncio.gather(*map(_listed, self._handles.values()))
            self._are_new = False
        found = await asyncio.gather(*(self._of(name, handle) for name, handle in self._handles.items()))
        answers = [one for each in found for one in each]
        configs = {name: deployment_config(handle) for name, handle in self._handles.items()}
        return Collection(
            asyncio.get_running_loop().time(),
            [one for one in answers if isinstance(one, ReplicaStats)],
            [one for one in answers if isinstance(one, Replica)],
            {name: _limits(config) for name, config in configs.items() if config is not None},
        )

    async def _of(self, deployment: str, handle: DeploymentHandle[Any]) -> list[ReplicaStats | Replica]:
        return await asyncio.gather(*(_answer(deployment, replica) for replica in known_replicas(handle)))


async def _listed(handle: DeploymentHandle[Any]) -> None:
    """Waits until a new handle knows its replicas, or for `LIST_S`: a deployment may have none."""
    end = asyncio.get_running_loop().time() + LIST_S
    while not handle.running_replicas_populated() and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)


async def _answer(deployment: str, replica: RunningReplica) -> ReplicaStats | Replica:
    unique_id = replica.replica_id.unique_id
    try:
        async with asyncio.timeout(ANSWER_S):
            stats: ReplicaStats = await ask_replica(replica, "stats")
            return stats
    except Exception as error:  # it may have ended, or hang; whatever it is, the others have answered
        logger.info(f"{deployment} {unique_id} gave no statistics: {type(error).__name__}")
        return Replica(deployment, unique_id, replica.node_id or "")


def _limits(config: Any) -> Limits:
    scaling = config.autoscaling_config
    most: int | None = config.num_replicas if scaling is None else scaling.max_replicas
    user_config = config.user_config if isinstance(config.user_config, dict) else {}
    return Limits(most, scaling is not None, user_config)
