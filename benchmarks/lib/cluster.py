"""A running server from outside: its processes, which can be killed, its replicas, and further nodes for it.

The caller must be connected to the server's Ray: by `attached`, or by `running` of operations/launch.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.lib.places import OUT, ROOT
from benchmarks.lib.process import descendants, free_port, haproxy_binary, is_listening, stop
from operations import launch

APP = "marqo"
DEPLOYMENTS = ("Ingress", "Preprocessor", "Encoder")
NODE_START_S = 60.0


@contextlib.contextmanager
def attached(pid: int) -> Iterator[Any]:
    """Connects this process to the Ray that process `pid` has started. Yields Serve's client."""
    import ray

    from deployments.ray_internals import serve_client, use_token_auth

    use_token_auth()  # as `ray.init` has done in the server
    ray.init(address=gcs_address(pid), namespace="serve", log_to_driver=False)
    try:
        yield serve_client()
    finally:
        ray.shutdown()


def gcs_address(pid: int) -> str:
    """The address at which the Ray that a process has started can be joined.

    Raises:
        LookupError: it has started none.
    """
    for process in descendants(pid):
        for word in _words(process):
            if word.startswith("--gcs-address="):
                return word.partition("=")[2]
    raise LookupError(f"no raylet runs below process {pid}")


class Victims:
    """The processes of one server.

    Args:
        pid: its first process. Only its descendants are ever found.
        url: where it answers.
        app: the application of its replicas.
    """

    def __init__(self, pid: int, url: str, app: str = APP) -> None:
        self._pid = pid
        self._port = urlsplit(url).port
        self._app = app

    def replicas(self, deployment: str) -> list[int]:
        """Processes of a deployment's replicas, including those that are starting."""
        return self._called(f"ServeReplica:{self._app}:{deployment}")

    def proxy_actors(self) -> list[int]:
        """Serve's actors that supervise HAProxy."""
        return self._called("HAProxyManager")

    def haproxies(self) -> list[int]:
        """HAProxy processes of the server's own node, oldest first. The last one listens, the others drain."""
        found = [p for p in descendants(self._pid) if self._is_haproxy(_words(p))]
        return [p.pid for p in sorted(found, key=psutil.Process.create_time)]

    def _is_haproxy(self, words: list[str]) -> bool:
        """Whether it is a HAProxy on the server's own port, and not on that of another node."""
        if not words or Path(words[0]).name != "haproxy" or "-f" not in words:
            return False
        return f":{self._port}\n" in Path(words[words.index("-f") + 1]).read_text()

    def _called(self, title: str) -> list[int]:
        return [p.pid for p in descendants(self._pid) if title in " ".join(_words(p))]


def kill(*pids: int) -> None:
    """Sends SIGKILL to processes."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def running(deployment: str, app: str = APP) -> int:
    """Replicas that Serve's controller counts as running."""
    from ray import serve

    states = serve.status().applications[app].deployments[deployment].replica_states
    return sum(count for state, count in states.items() if str(getattr(state, "value", state)) == "RUNNING")


@contextlib.contextmanager
def beside_marqo(*haproxies: str) -> Iterator[str]:
    """A HAProxy with config/beside-marqo.cfg while the context lasts. Yields the URL at which it answers.

    Args:
        haproxies: "host:port" of the HAProxy of each node of one server. Requests go to the first that is alive.
    """
    port = free_port()
    first, *others = haproxies
    config = OUT / "configs" / f"beside-{port}.cfg"
    config.parent.mkdir(parents=True, exist_ok=True)
    last = "    server last"
    lines = "".join(f"    server other{number} {address} tcp-ut 10s backup\n" for number, address in enumerate(others))
    config.write_text((ROOT / "config" / "beside-marqo.cfg").read_text().replace(last, lines + last))
    environment = {**os.environ, "MARQO_FRONT_DOOR": first, "MARQO_SIDECAR": f"127.0.0.1:{port}"}
    process = subprocess.Popen(
        [haproxy_binary(), "-db", "-f", str(config)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    try:
        wait_until(lambda: is_listening(port), "HAProxy to listen", NODE_START_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Node:
    """A worker node on this machine: a raylet of its own, with all that it starts.

    Args:
        address: of the cluster.
        cpus: that it offers.
        http_port: of its HAProxy. Nodes on one machine share an address, so each needs a port of its own.

    Raises:
        TimeoutError: it does not join the cluster.
    """

    def __init__(self, address: str, cpus: int = 2, http_port: int | None = None) -> None:
        log = OUT / "logs" / "node.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # Ray on loopback, as the server has it.
        environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        environment["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = str(http_port or free_port())
        # Not their number: a node that was just killed counts as alive for some seconds, perhaps while this one joins.
        before = _alive_nodes()
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.lib.node", address, str(cpus)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                cwd=ROOT, env={**os.environ, **environment},
            )  # fmt: skip
        self.pid = self._process.pid
        try:
            wait_until(lambda: bool(_alive_nodes() - before), "the node to join", NODE_START_S)
        except TimeoutError:
            stop(self._process)
            raise TimeoutError(f"the node did not join: {log.read_text()[-1000:]}") from None

    def kill(self) -> None:
        """Kills all of its processes at once."""
        kill(*(process.pid for process in descendants(self.pid)))
        self._process.wait()

    def stop(self) -> None:
        """Interrupts it, as an operator would."""
        stop(self._process)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    """Polls until the condition's value is true.

    Raises:
        TimeoutError: it is still false after `timeout_s`. The message names `what`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(0.25)


def deploy(client: Any, config: Mapping[str, Any]) -> None:
    """Deploys a changed config and waits until it runs, as an operator does with `serve deploy` and `serve status`."""
    launch.deploy(client, config)


def _alive_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
