"""Every private name of Ray 2.60 that this project uses, in one place: a new release of Ray may rename any of them.

There is one function for each, with the reason why no public name serves. `tests/serve/test_ray_internals.py` checks
each of them against a running Ray Serve. Importing this module imports Ray: see `operations.environment.apply`.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from ray.serve import Deployment
from ray.serve._private.common import ReplicaID, RequestMetadata
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RunningReplica

__all__ = ["PowerOfTwoChoicesRequestRouter", "ReplicaID", "RequestMetadata"]

# Most of what follows is not annotated in Ray, or is an attribute of a subclass that its annotations do not name: hence
# the `type: ignore` comments.


def by_import_path(decorator: Callable[[Any], Deployment], path: str) -> Deployment:
    """The deployment of the class `module.name`, which only its replicas import.

    Serve's annotations want the class itself; its replicas also take a path.
    """
    return decorator(path)


def by_reference(handle: DeploymentHandle[Any], **options: Any) -> DeploymentHandle[Any]:
    """The handle with `options`, whose calls go through Ray's actors and object store instead of gRPC.

    With RAY_SERVE_THROUGHPUT_OPTIMIZED Serve sends arguments by value, which is cheaper for small ones; the public
    options cannot choose for a single call.
    """
    return handle.options(_by_reference=True, **options)


def goes_by_reference(handle: DeploymentHandle[Any]) -> bool:
    """Whether calls of a handle go by reference. `options` must have been called on the handle, or it must have been
    used."""
    return bool(handle.handle_options._by_reference)  # type: ignore[attr-defined]


def for_this_thread(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """A handle for a thread without an event loop, in a process that has Serve's settings for throughput.

    With those settings a handle runs in the event loop of its caller; processes without them get the behaviour of this
    function by default. Must be called before the first use of the handle.
    """
    handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle


def request_router(handle: DeploymentHandle[Any]) -> PowerOfTwoChoicesRequestRouter | None:
    """What chooses the replicas of a handle's calls; None until the handle has got its deployment's configuration."""
    router: PowerOfTwoChoicesRequestRouter | None = handle._router._asyncio_router._request_router  # type: ignore[union-attr]
    return router


def known_replicas(handle: DeploymentHandle[Any]) -> list[RunningReplica]:
    """The replicas to which the handle can send a call now. Serve's public API shows them to request routers only."""
    router = request_router(handle)
    return [] if router is None else list(router.curr_replicas.values())


def grpc_channel(replica: RunningReplica) -> grpc.aio.Channel:
    """The channel on which calls by value go to a replica."""
    assert replica.stub is not None  # reading the property opens the channel
    return replica._channel


def pending_requests(router: PowerOfTwoChoicesRequestRouter) -> Iterable[PendingRequest]:
    """Calls of a request router that wait for a replica, the oldest first."""
    return router._pending_requests_to_fulfill


async def ask_replica(replica: RunningReplica, method: str) -> Any:
    """The answer of one replica's method without arguments, by reference; it is cancelled when its caller is.

    The public `broadcast` answers only when every replica has, and does not say which answer is whose.
    """
    name = str(uuid.uuid4())
    metadata = RequestMetadata(request_id=name, internal_request_id=name, call_method=method, _by_reference=True)
    call = replica.try_send_request(PendingRequest([], {}, metadata, resolved=True), with_rejection=False)
    try:
        return await call.get_async()  # type: ignore[no-untyped-call]
    except asyncio.CancelledError:
        call.cancel()  # type: ignore[no-untyped-call]
        raise


def request_id() -> str:
    """Serve's id of the request for which the caller works; empty if there is none. Serve passes it on with each call
    of a handle, and shows it publicly in log lines only."""
    from ray.serve import context

    return context._get_serve_request_context().request_id


def deployment_config(handle: DeploymentHandle[Any]) -> Any:
    """The `DeploymentConfig` of a handle's deployment: `num_replicas`, `autoscaling_config`, `user_config`; None until
    the handle has got it. The public `serve.status` is a blocking call to the controller, and has none of it."""
    return handle._router._asyncio_router._metrics_manager._deployment_config  # type: ignore[union-attr]


def start_serve(http_options: Mapping[str, Any], proxy_location: str) -> Any:
    """Starts Serve and returns its client. `serve.start` returns none, and no public call waits until a config is
    deployed and says why it failed."""
    from ray.serve._private.api import serve_start

    return serve_start(http_options=dict(http_options), proxy_location=proxy_location)


@contextlib.contextmanager
def without_idle_processes(dashboard: bool) -> Iterator[None]:
    """Within the context `ray.init` starts a Ray without the monitor of the autoscaler and without the dashboard's
    process, which on a single machine only take memory, and half a second of each of two cores at start.

    `ray.init` has no option for the first, and starts the second even with `include_dashboard=False`, for statistics of
    use that are off.

    Args:
        dashboard: the second is started all the same.
    """
    from ray._private.node import Node

    names = ["start_monitor", *([] if dashboard else ["start_api_server"])]
    kept = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _start_nothing(*_: Any, **__: Any) -> None:
    """In place of a method that starts a process."""


def dead_processes() -> list[tuple[str, Any]]:
    """Processes of the Ray that this process has started which have ended: (kind, `subprocess.Popen`) pairs."""
    from ray._private.worker import _global_node

    return list(_global_node.dead_processes()) if _global_node else []


def serve_controller() -> Any:
    """The actor that is Serve's controller; None if there is none, or if it has ended and is not restarted."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None


def haproxy_socket(node_id: str) -> Path:
    """The socket at which a node's HAProxy takes commands. Serve has no way to drain HAProxy before a shutdown."""
    from ray.serve._private.constants import RAY_SERVE_HAPROXY_SOCKET_PATH

    path = Path(RAY_SERVE_HAPROXY_SOCKET_PATH)
    return path.parent / node_id / path.name


def close_handles() -> None:
    """Ends the background tasks of this process's handles, before Serve is stopped."""
    from ray.serve import context

    if context._global_client is not None:
        context._global_client.shutdown_cached_handles()  # type: ignore[no-untyped-call]


def disconnect_serve() -> None:
    """Forgets the Serve to which this process is connected. `serve.shutdown` would wait for an answer that never comes,
    since the controller ends first."""
    from ray.serve import context

    context._disconnect()  # type: ignore[no-untyped-call]


def serve_client() -> Any:
    """Client of the Serve that runs in the Ray to which this process is connected."""
    from ray.serve.context import _get_global_client

    return _get_global_client()


def use_token_auth() -> None:
    """Makes this process's Ray use the machine's token, as `ray.init` does in a process that starts a Ray."""
    from ray._private.authentication.authentication_token_setup import _enable_token_auth

    _enable_token_auth()


def store_stats(host: str, port: int) -> Any:
    """Figures of a node's object store: `num_local_objects`, `object_store_bytes_used`, …

    Args:
        host: address of the node.
        port: of its node manager.
    """
    from ray._private.internal_api import node_stats

    return node_stats(host, port, include_memory_info=False).store_stats  # type: ignore[no-untyped-call]


def start_worker_node(gcs_address: str, host: str, cpus: int, store_bytes: int) -> None:
    """Adds a node to a cluster; it ends with this process. `ray start` always uses the machine's own address, at which
    a Ray that is restricted to loopback does not listen."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    parameters = RayParams(
        gcs_address=gcs_address,
        node_ip_address=host,
        num_cpus=cpus,
        object_store_memory=store_bytes,
        include_log_monitor=False,  # type: ignore[arg-type]  # annotated as text, used as a truth value
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=False)


def build_application(builder: Any, args: Mapping[str, Any]) -> Any:
    """The application that Serve makes of a builder and the `args` of a config."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    return call_user_app_builder_with_args_if_necessary(builder, dict(args))
