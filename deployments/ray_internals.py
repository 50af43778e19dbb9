"""Every private name of Ray 2.60 that this project uses, in one place: whatever a new release of Ray may rename.

One function for each, with the reason why nothing public does. `tests/serve/test_ray_internals.py` holds each to what
is expected of it. Ray is imported with this module: see `operations.environment.apply`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from ray.serve._private.common import ReplicaID, RequestMetadata
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica

__all__ = ["PowerOfTwoChoicesRequestRouter", "ReplicaID", "RequestMetadata"]


def by_reference(handle: DeploymentHandle[Any], **options: Any) -> DeploymentHandle[Any]:
    """The handle with options, whose calls go through Ray's actors and its object store instead of gRPC.

    With RAY_SERVE_THROUGHPUT_OPTIMIZED Serve sends arguments by value, which costs less for small ones; the public
    options cannot choose for a single call.
    """
    return handle.options(_by_reference=True, **options)


def goes_by_reference(handle: DeploymentHandle[Any]) -> bool:
    """Whether calls of a handle go by reference. The handle must have had `options`, or have been used."""
    return bool(handle.handle_options._by_reference)


def for_this_thread(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """A handle that a thread without an event loop may use, in a process that has Serve's settings for throughput.

    With them a handle runs in its caller's event loop; callers from elsewhere get this by default. To be called before
    the handle's first use.
    """
    handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle


def known_replicas(handle: DeploymentHandle[Any]) -> list[RunningReplica]:
    """The replicas to which a handle would send a call now. Serve shows them to request routers only."""
    router = handle._router._asyncio_router._request_router
    return [] if router is None else list(router.curr_replicas.values())


def grpc_channel(replica: RunningReplica) -> grpc.aio.Channel:
    """The channel on which calls by value go to a replica."""
    assert replica.stub is not None  # makes the channel
    return replica._channel


def pending_requests(router: PowerOfTwoChoicesRequestRouter) -> Iterable[PendingRequest]:
    """Calls of a request router that wait for a replica, the oldest first."""
    return router._pending_requests_to_fulfill


def start_serve(http_options: Mapping[str, Any], proxy_location: str) -> Any:
    """Starts Serve and gives its client. `serve.start` gives none, and no public call waits for a config's deployment
    and says why it failed."""
    from ray.serve._private.api import serve_start

    return serve_start(http_options=dict(http_options), proxy_location=proxy_location)


def dead_processes() -> list[tuple[str, Any]]:
    """Processes of the Ray that this process has started which have ended: kind, and `subprocess.Popen`."""
    from ray._private.worker import _global_node

    return list(_global_node.dead_processes()) if _global_node else []


def serve_controller() -> Any:
    """The actor that is Serve's controller; None if there is none, or only one that has ended for good."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None


def close_handles() -> None:
    """Ends what the handles of this process have running, before Serve is stopped."""
    from ray.serve import context

    if context._global_client is not None:
        context._global_client.shutdown_cached_handles()


def disconnect_serve() -> None:
    """Forgets the Serve that this process was connected to. `serve.shutdown` would wait for an answer that never comes,
    since the controller ends first."""
    from ray.serve import context

    context._disconnect()


def serve_client() -> Any:
    """Client of the Serve that runs in the Ray to which this process is connected."""
    from ray.serve.context import _get_global_client

    return _get_global_client()


def use_token_auth() -> None:
    """Has this process's Ray use the machine's token, as `ray.init` does in a process that starts a Ray."""
    from ray._private.authentication.authentication_token_setup import _enable_token_auth

    _enable_token_auth()


def store_stats(host: str, port: int) -> Any:
    """What a node's object store holds: `num_local_objects`, `object_store_bytes_used`, …"""
    from ray._private.internal_api import node_stats

    return node_stats(host, port, include_memory_info=False).store_stats


def start_worker_node(gcs_address: str, host: str, cpus: int, store_bytes: int) -> None:
    """Joins a cluster with a node of this process's, which ends with it. `ray start` insists on the machine's own
    address, where a Ray that keeps to loopback does not listen."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    parameters = RayParams(
        gcs_address=gcs_address,
        node_ip_address=host,
        num_cpus=cpus,
        object_store_memory=store_bytes,
        include_log_monitor=False,
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=False)


def build_application(builder: Any, args: Mapping[str, Any]) -> Any:
    """The application that Serve makes of a builder and the `args` of a config."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    return call_user_app_builder_with_args_if_necessary(builder, dict(args))
