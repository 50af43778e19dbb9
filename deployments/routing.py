"""Which encoder gets a request: the one that has its model, until that one is busy with it.

A model has a home, found by rendezvous hashing of its properties, so every ingress picks the same one without asking.
A cold model is therefore loaded once in the cluster; a hot one overflows to further replicas, in an order of its own.
"""

import time
from collections import Counter
from functools import lru_cache
from itertools import islice

from blake3 import blake3
from ray.serve._private.common import ReplicaID, RequestMetadata
from ray.serve._private.replica_result import ReplicaResult
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica

from embedding.models.spec import ModelSpec

UNDER_WAY_S = 5.0


class ModelAffinityRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's default router, except for calls that name a model (by session id).

    Not on top of Serve's own consistent hashing (experimental in 2.60): it leaves a replica only when that refuses, and
    the one run that we made on top of it hung (cause not established).
    """

    def initialize_state(self, busy_at: int = 4) -> None:
        """Takes the deployment's `request_router_kwargs`.

        Args:
            busy_at: calls of one model in flight at a replica from which on the model's next one is tried.
        """
        self._busy_at = busy_at
        self._calls = CallsInFlight()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The first replica in the model's order that is not busy with it; if all are, Serve takes the least busy."""
        model = pending_request.metadata.session_id if pending_request is not None else ""
        if pending_request is None or not model:
            return await super().choose_replicas(candidate_replicas, pending_request)
        order = sorted(
            candidate_replicas, key=lambda replica: blake3(f"{model} {replica.replica_id}".encode()).digest()
        )
        for replica in order:
            if self._in_flight(model, replica.replica_id) < self._busy_at:
                self._calls.chosen(pending_request.metadata.internal_request_id, model, replica.replica_id)
                return [[replica]]
        return [order]

    def _in_flight(self, model: str, replica_id: ReplicaID) -> float:
        """A model's calls at a replica, those of other ingresses included, whose mix is taken to be like ours."""
        of_all = self.replica_queue_len_cache.get(replica_id) or 0
        return of_all * self._calls.share(model, replica_id)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """A replica has taken a call."""
        metadata = pending_request.metadata
        self._calls.taken(metadata.internal_request_id, metadata.session_id, replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call has ended, or was refused by its replica."""
        self._calls.ended(internal_request_id, replica_id)

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        # A replica that was chosen for one call's model is not handed to the call that happens to be first in line.
        return self._get_pending_request_matching_internal_request_id(request_metadata)


class CallsInFlight:
    """Which model's calls this process has in flight, and where."""

    def __init__(self) -> None:
        self._chosen: dict[str, tuple[float, str, ReplicaID]] = {}
        self._taken: dict[str, tuple[str, ReplicaID]] = {}
        self._of_model: Counter[tuple[str, ReplicaID]] = Counter()
        self._of_replica: Counter[ReplicaID] = Counter()

    def share(self, model: str, replica_id: ReplicaID) -> float:
        """Of the calls at a replica, 0 to 1."""
        of_all = self._of_replica[replica_id]
        return self._of_model[model, replica_id] / of_all if of_all else 0.0

    def chosen(self, call: str, model: str, replica_id: ReplicaID) -> None:
        """Counts a call from now on, so that calls of the same moment do not all see an idle replica. One that never
        gets there (its caller has gone) is forgotten after a while."""
        now = time.monotonic()
        for earlier, (since, _, _) in list(islice(self._chosen.items(), 2)):
            if now - since > UNDER_WAY_S:
                self._forget(earlier)
        self._forget(call)
        self._chosen[call] = now, model, replica_id
        self._count(model, replica_id, 1)

    def taken(self, call: str, model: str, replica_id: ReplicaID) -> None:
        """Counts a call until it ends."""
        self._forget(call)
        self._taken[call] = model, replica_id
        self._count(model, replica_id, 1)

    def ended(self, call: str, replica_id: ReplicaID) -> None:
        """Forgets a call. One that a replica refused may be on its way to another by now."""
        if call in self._taken and self._taken[call][1] == replica_id:
            self._count(*self._taken.pop(call), -1)
        elif call in self._chosen and self._chosen[call][2] == replica_id:
            self._forget(call)

    def _forget(self, call: str) -> None:
        if call in self._chosen:
            _, model, replica_id = self._chosen.pop(call)
            self._count(model, replica_id, -1)

    def _count(self, model: str, replica_id: ReplicaID, by: int) -> None:
        self._of_model[model, replica_id] += by
        self._of_replica[replica_id] += by
        if not self._of_model[model, replica_id]:
            del self._of_model[model, replica_id]
        if not self._of_replica[replica_id]:
            del self._of_replica[replica_id]


@lru_cache(4096)
def _home_key(properties_json: str) -> str:
    return blake3(properties_json.encode()).hexdigest(8)


def to_home(handle: DeploymentHandle, spec: ModelSpec) -> DeploymentHandle:
    """The handle, its next call steered to where the model is."""
    return handle.options(session_id=_home_key(spec.properties_json))


MODEL_AFFINITY = RequestRouterConfig(request_router_class="deployments.routing.ModelAffinityRouter")
