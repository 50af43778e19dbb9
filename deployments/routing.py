"""Which encoder gets a request: the one that has its model, until that one is busy.

A model has a home, found by rendezvous hashing of its properties, so every ingress picks the same one without asking.
A cold model is therefore loaded once in the cluster; a hot one overflows to further replicas, in an order of its own.
"""

from functools import lru_cache

from blake3 import blake3
from ray.serve._private.common import RequestMetadata
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica

from embedding.models.spec import ModelSpec


class ModelAffinityRouter(PowerOfTwoChoicesRequestRouter):
    """Serve's default router, except for calls that name a model (by session id).

    Not on top of Serve's own consistent hashing (experimental in 2.60): it leaves a replica only when that refuses, and
    the one run that we made on top of it hung (cause not established).
    """

    def initialize_state(self, busy_at: int = 4) -> None:
        """Takes the deployment's `request_router_kwargs`.

        Args:
            busy_at: calls in flight at a replica from which on the model's next one is tried.
        """
        self._busy_at = busy_at

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The first replica in the model's order that is not busy; if all are, Serve takes the least busy one."""
        model = pending_request.metadata.session_id if pending_request is not None else ""
        if not model:
            return await super().choose_replicas(candidate_replicas, pending_request)
        order = sorted(
            candidate_replicas, key=lambda replica: blake3(f"{model} {replica.replica_id}".encode()).digest()
        )
        for replica in order:
            if (self.replica_queue_len_cache.get(replica.replica_id) or 0) < self._busy_at:
                return [[replica]]
        return [order]

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        # A replica that was chosen for one call's model is not handed to the call that happens to be first in line.
        return self._get_pending_request_matching_internal_request_id(request_metadata)


@lru_cache(4096)
def _home_key(properties_json: str) -> str:
    return blake3(properties_json.encode()).hexdigest(8)


def to_home(handle: DeploymentHandle, spec: ModelSpec) -> DeploymentHandle:
    """The handle, its next call steered to where the model is."""
    return handle.options(session_id=_home_key(spec.properties_json))


MODEL_AFFINITY = RequestRouterConfig(request_router_class="deployments.routing.ModelAffinityRouter")
