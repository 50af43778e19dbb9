"""Which encoder gets a request: the one that has its model, until that one is busy with it.

A model has a home, found by rendezvous hashing of its properties, so every ingress picks the same one without asking.
A cold model is therefore loaded once in the cluster; a hot one overflows to further replicas, in an order of its own.
"""

import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice

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
"""A call that has not ended by then never got to its replica: the ingress gives a request up before."""


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
        """The first replica in the model's order that is not busy with it; if all are, the least busy."""
        model = pending_request.metadata.session_id if pending_request is not None else ""
        if pending_request is None or not model:
            return await super().choose_replicas(candidate_replicas, pending_request)
        # Serve asks again where a replica did not answer in time. What was chosen then does not count.
        self._calls.forget(pending_request.metadata)
        order = sorted(
            candidate_replicas, key=lambda replica: blake3(f"{model} {replica.replica_id}".encode()).digest()
        )
        free = (replica for replica in order if self._in_flight(model, replica.replica_id) < self._busy_at)
        replica = next(free, None) or min(order, key=self._queue)
        self._calls.chosen(pending_request.metadata, replica.replica_id)
        return [[replica]]

    def _in_flight(self, model: str, replica_id: ReplicaID) -> float:
        """A model's calls at a replica, those of other ingresses included, whose mix is taken to be like ours."""
        of_all = self.replica_queue_len_cache.get(replica_id) or 0
        return of_all * self._calls.share(model, replica_id)

    def _queue(self, replica: RunningReplica) -> tuple[bool, int]:
        """By which the least busy is found; of one that is gone the length is not known."""
        length = self.replica_queue_len_cache.get(replica.replica_id)
        return length is None, length or 0

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call has ended, or was refused by its replica."""
        self._calls.ended(internal_request_id, replica_id)

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        # A replica that was chosen for one call's model is not handed to the call that happens to be first in line. Not
        # by Serve's id, as Serve's other routers find it: that is the same for all calls that one request makes.
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
    """Which model's calls this process has in flight, and where: from when a replica is chosen until the call ends.

    A call is known by the identity of its metadata, since the id that Serve gives it is that of the request that makes
    it. When it ends, only that id is told, and which of a request's calls at a replica has ended makes no difference: a
    refusal that is noted late may count one of them too few for as long as that one takes, and none too many.
    """

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._of_model: Counter[tuple[str, ReplicaID]] = Counter()
        self._of_replica: Counter[ReplicaID] = Counter()

    def share(self, model: str, replica_id: ReplicaID) -> float:
        """Of the calls at a replica, 0 to 1."""
        of_all = self._of_replica[replica_id]
        return self._of_model[model, replica_id] / of_all if of_all else 0.0

    def chosen(self, metadata: RequestMetadata, replica_id: ReplicaID) -> None:
        """Counts a call from now on, so that calls of the same moment do not all see an idle replica. One that never
        gets there (its caller has gone) is forgotten after a while."""
        now = time.monotonic()
        for earlier in list(islice(self._calls.values(), 2)):
            if now - earlier.since > LONGEST_S:
                self.forget(earlier.metadata)
        self.forget(metadata)
        self._calls[id(metadata)] = _Call(now, metadata, replica_id)
        self._count(metadata.session_id, replica_id, 1)

    def ended(self, request: str, replica_id: ReplicaID) -> None:
        """Forgets one of a request's calls at a replica. One that a replica refused may be on its way to another."""
        for call in self._calls.values():
            if call.metadata.internal_request_id == request and call.replica_id == replica_id:
                self.forget(call.metadata)
                return

    def forget(self, metadata: RequestMetadata) -> None:
        """Does not count a call any more, if it was counted."""
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


def _home_key(properties_json: str) -> str:
    return blake3(properties_json.encode()).hexdigest(8)


def to_home(handle: DeploymentHandle, spec: ModelSpec) -> DeploymentHandle:
    """The handle, its next call steered to where the model is."""
    return handle.options(session_id=_home_key(spec.properties_json))


MODEL_AFFINITY = RequestRouterConfig(request_router_class="deployments.routing.ModelAffinityRouter")
