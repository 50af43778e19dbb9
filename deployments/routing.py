"""Which encoder replica gets a call: the model's preferred replica, until that is busy with the model.

Rendezvous hashing of a model's properties gives an order of the replicas, the same in every ingress without any
communication. The first one is the preferred replica. A rarely used model is therefore loaded once in the cluster; a
heavily used one overflows to further replicas in this order.
"""

import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

from blake3 import blake3
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica

from deployments.ray_internals import (
    PowerOfTwoChoicesRequestRouter,
    ReplicaID,
    RequestMetadata,
    pending_requests,
)
from embedding.models.spec import ModelSpec

LONGEST_S = 300.0
"""A call that has not ended after this time is taken for one that never reached its replica, since by default the
ingress ends every request earlier. If `request_timeout_s` is longer, calls that take longer than this are no longer
counted, and their replica seems less busy than it is."""


class ModelAffinityRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's default router, except for calls whose session id names a model.

    Serve's own consistent hashing (experimental in 2.60) is not used: it leaves a replica only when that refuses a
    call, and the one test run with it hung (cause not established).
    """

    def initialize_state(self, busy_at: int = 4) -> None:  # type: ignore[override]  # Serve passes the kwargs by name
        """Takes the deployment's `request_router_kwargs`.

        Args:
            busy_at: a replica with this many calls of one model in flight is busy with it: the next in order is tried.
        """
        self._busy_at = busy_at
        self._calls = CallsInFlight()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The first replica in the model's order that is not busy with it; if all are, the least busy."""
        model = pending_request.metadata.session_id if pending_request is not None else ""
        if pending_request is None or not model:
            return await super().choose_replicas(candidate_replicas, pending_request)
        # Serve chooses again if a replica did not answer in time. The previous choice no longer counts.
        self._calls.forget(pending_request.metadata)
        order = sorted(
            candidate_replicas, key=lambda replica: blake3(f"{model} {replica.replica_id}".encode()).digest()
        )
        free = (replica for replica in order if self._in_flight(model, replica.replica_id) < self._busy_at)
        replica = next(free, None) or min(order, key=self._queue)
        self._calls.chosen(pending_request.metadata, replica.replica_id)
        return [[replica]]

    def _in_flight(self, model: str, replica_id: ReplicaID) -> float:
        """A model's calls at a replica, from all ingresses: the others are assumed to send the same mix of models."""
        of_all = self.replica_queue_len_cache.get(replica_id) or 0
        return of_all * self._calls.share(model, replica_id)

    def _queue(self, replica: RunningReplica) -> tuple[bool, int]:
        """Sort key for the least busy replica. The queue length of one that has ended is not known: it comes last."""
        length = self.replica_queue_len_cache.get(replica.replica_id)
        return length is None, length or 0

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a call has ended, or when its replica has refused it."""
        self._calls.ended(internal_request_id, replica_id)

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        # A replica chosen for one call's model must not be given to the call that is first in the queue. The call is
        # found by identity and not by Serve's id, as in Serve's own routers: all calls of one request share that id.
        return next(
            (
                pending
                for pending in pending_requests(self)
                if pending.metadata is request_metadata and not pending.future.done()
            ),
            None,
        )


@dataclass(frozen=True, slots=True)
class _Call:
    since: float
    metadata: RequestMetadata
    replica_id: ReplicaID


class CallsInFlight:
    """This process's calls in flight, by model and replica, counted from the choice of a replica until the call ends.

    Calls are identified by their metadata object, because Serve's id is that of the request, shared by all its calls.
    When a call ends only that id is reported, and any of the request's calls at that replica is removed. After a
    refusal that is reported late, the count may be one too low until that call ends; it is never too high.
    """

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._of_model: Counter[tuple[str, ReplicaID]] = Counter()
        self._of_replica: Counter[ReplicaID] = Counter()

    def share(self, model: str, replica_id: ReplicaID) -> float:
        """The model's part of this process's calls at a replica, 0 to 1."""
        of_all = self._of_replica[replica_id]
        return self._of_model[model, replica_id] / of_all if of_all else 0.0

    def chosen(self, metadata: RequestMetadata, replica_id: ReplicaID) -> None:
        """Counts a call from now on, so that calls of the same moment do not all see an idle replica. A call that never
        reaches its replica (its caller has ended) is removed after `LONGEST_S`."""
        now = time.monotonic()
        # The oldest two: enough to remove them faster than calls are added, at a constant cost for each call.
        for earlier in list(islice(self._calls.values(), 2)):
            if now - earlier.since > LONGEST_S:
                self.forget(earlier.metadata)
        self.forget(metadata)
        self._calls[id(metadata)] = _Call(now, metadata, replica_id)
        self._count(metadata.session_id, replica_id, 1)

    def ended(self, request: str, replica_id: ReplicaID) -> None:
        """Removes one of a request's calls at a replica. Serve may send a refused call to another replica."""
        for call in self._calls.values():
            if call.metadata.internal_request_id == request and call.replica_id == replica_id:
                self.forget(call.metadata)
                return

    def forget(self, metadata: RequestMetadata) -> None:
        """Removes a call, if it is counted."""
        call = self._calls.pop(id(metadata), None)
        if call is not None:
            self._count(metadata.session_id, call.replica_id, -1)

    def _count(self, model: str, replica_id: ReplicaID, by: int) -> None:
        self._of_model[model, replica_id] += by
        self._of_replica[replica_id] += by
        if not self._of_model[model, replica_id]:
            del self._of_model[model, replica_id]
        if not self._of_replica[replica_id]:
            del self._of_replica[replica_id]


def model_key(properties_json: str) -> str:
    """The session id of a model's calls: a hash of its properties, 16 hex digits."""
    return blake3(properties_json.encode()).hexdigest(8)


def to_preferred_replica(handle: DeploymentHandle[Any], spec: ModelSpec) -> DeploymentHandle[Any]:
    """The handle, with calls routed to the model's preferred replica."""
    return handle.options(session_id=model_key(spec.properties_json))


MODEL_AFFINITY = RequestRouterConfig(
    request_router_class="deployments.routing.ModelAffinityRouter"  # type: ignore[arg-type]  # Ray: all are dicts
)
