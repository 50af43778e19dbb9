"""What a replica of any deployment says of itself: its numbers, in a message between replicas."""

import time
from dataclasses import dataclass

import ray
from ray import serve

from embedding.meter import Meter, Snapshot


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """The numbers of one replica.

    Args:
        deployment: its name in Serve.
        replica: Serve's id of the replica, as in the name of its log file and in Ray's dashboard.
        node: Ray's id of its node.
        clock_s: its monotonic clock; two answers of one replica have their distance in seconds.
        snapshot: of its meter.
    """

    deployment: str
    replica: str
    node: str
    clock_s: float
    snapshot: Snapshot


def replica_stats(meter: Meter) -> ReplicaStats:
    """The numbers of this replica. Call it on the replica's event loop."""
    replica = serve.get_replica_context().replica_id
    node = ray.get_runtime_context().get_node_id()
    return ReplicaStats(replica.deployment_id.name, replica.unique_id, node, time.monotonic(), meter.snapshot())
