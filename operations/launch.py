"""Runs a config on this machine, in the foreground, like `serve run`; a failed start ends with one sentence.

    python -m operations.launch config/demo.yaml
    python -m operations.launch --host 0.0.0.0 config/serve.yaml
    eval "$(python -m operations.launch --environment)"; ray start …

Unlike `serve run`, it refuses a busy port (two proxies would share it, each with half of the requests), notices a
failed deployment instead of waiting for ever, keeps all of Ray's own ports on loopback, and starts no dashboard. The
last form is for the nodes of a cluster: it prints the same settings, without those for a single machine.
"""

import argparse
import contextlib
import itertools
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from operations import address, environment, metrics_page, preflight, supervision
from operations.config_file import read_config
from operations.errors import StartError
from operations.guardian import Guardian, end_orphans

START_TIMEOUT_S = 600.0
WHY_CHARS = 1000
"""Characters of a failure's reason that are shown."""


@contextlib.contextmanager
def running(
    config: Mapping[str, Any], on_loss: Callable[[str], None] | None = None, **ray_options: Any
) -> Iterator[Any]:
    """A local Ray and Serve with the applications of `config`, all ready; stopped at the end of the context. All
    processes that it starts end with the context, or with this process, however that ends.

    Args:
        config: from `read_config`.
        on_loss: called with a sentence, from a thread, if Ray or Serve ends before the context does; all processes that
            were started have been ended then. It should not return: the context may wait for a process that has ended.
        ray_options: for `ray.init`.

    Yields:
        Serve's client, which can deploy further configs.

    Raises:
        StartError: the machine lacks something, the port is busy, a deployment failed, or Ray was imported before
            `environment.apply`.
    """
    environment.apply()
    check_machine()
    http = config.get("http_options", {})
    end_orphans()
    check_port(address.host_of(http), http.get("port", address.DEFAULT_PORT))
    metrics = metrics_page.wanted(os.environ)
    # Before Ray starts: it sets a variable that Ray's processes inherit.
    http_options = address.for_serve(http)
    guardian = Guardian()

    def lost(reason: str) -> None:
        guardian.end_all()
        assert on_loss is not None
        on_loss(reason)

    try:
        with metrics_page.served(metrics, _metrics_port):
            _start_ray(guardian, ray_options)
            with contextlib.nullcontext() if on_loss is None else supervision.watched(lost):
                client = _start_serve(http_options, config.get("proxy_location", "EveryNode"))
                deploy(client, config)
                yield client
    finally:
        supervision.stop()
        guardian.end_all()


def _metrics_port() -> int | None:
    """Of Ray's own page; None before Ray has started and after it has ended."""
    import ray

    if not ray.is_initialized():
        return None
    return next((int(node["MetricsExportPort"]) for node in ray.nodes() if node["Alive"]), None)  # type: ignore[no-untyped-call]


def _start_ray(guardian: Guardian, options: Mapping[str, Any]) -> None:
    """Starts a new Ray, even if another one runs on this machine or is named in the environment."""
    import ray

    from deployments.ray_internals import without_idle_processes

    on_sigterm = signal.getsignal(signal.SIGTERM)
    wanted = {"address": "local", "include_dashboard": False, "namespace": "serve", **options}
    try:
        with guardian.marked(), without_idle_processes(dashboard=wanted["include_dashboard"]):
            ray.init(**wanted)
    except Exception as error:
        raise StartError(f"Ray did not start: {_in_one_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there


def _start_serve(http_options: dict[str, Any], location: str) -> Any:
    from deployments.ray_internals import start_serve

    try:
        return start_serve(http_options, location)
    except Exception as error:
        raise StartError(f"Serve did not start: {_exception(str(error)) or _in_one_line(error)}") from None


def deploy(client: Any, config: Mapping[str, Any], timeout_s: float = START_TIMEOUT_S) -> None:
    """Deploys `config` and waits until all its applications run.

    Args:
        client: of Serve.
        config: from `read_config`.
        timeout_s: until then they must run.

    Raises:
        StartError: a deployment failed, or was not ready in time.
    """
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    client.deploy_apps(ServeDeploySchema.model_validate(address.for_schema(config)))
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
    """Whether HAProxy (or Serve's proxy) has routes to the applications. It gets them some moments after they run, and
    answers 404 until then."""
    import requests

    if config.get("proxy_location") == "Disabled":
        return True
    url = address.url_of(config.get("http_options", {}))
    try:
        with requests.Session() as session:
            session.trust_env = False  # an HTTP proxy may not reach this machine
            reply = session.get(f"{url}/-/routes", timeout=5, allow_redirects=False)
        return reply.ok and names <= set(reply.json().values())
    except requests.RequestException:
        return False


def check_machine() -> None:
    """Raises this process's limits as far as it is allowed to.

    Raises:
        StartError: the machine lacks something.
    """
    preflight.raise_limits()
    if reason := preflight.problem() or address.pages_problem():
        raise StartError(reason)


def check_port(host: str | None, port: int) -> None:
    """Checks that a server can listen there. Serve's own proxy would share a busy port without any message.

    Raises:
        StartError: it cannot.
    """
    if reason := address.problem(host, port):
        raise StartError(reason)


def _why(applications: Mapping[str, Any]) -> str:
    """The reason of the first failure. In Serve's messages the exception is at the end, after its traceback."""
    messages = [d.message for a in applications.values() for d in a.deployments.values()]
    messages += [application.message for application in applications.values()]
    texts = [text for message in messages if message for text in [_exception(message)] if text]
    plain = [" ".join(message.split()) for message in messages if message]
    return (texts or plain or ["no reason was given"])[0][:WHY_CHARS]


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _exception(message: str) -> str | None:
    """The last exception of a traceback in one line, with the lines that pydantic adds; None if there is none."""
    lines = message.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"(\w+\.)*\w*(Error|Exception)\b.*:", line)]
    if not starts:
        return None
    text = " ".join(itertools.takewhile(str, (line.strip() for line in lines[starts[-1] :])))
    text = re.sub(r" (For further information visit \S+|\[type=[^\]]*\])", "", text)
    # Without the prefix that names where it was raised.
    return text.rpartition("RuntimeError: ")[2]


def main() -> int:
    """Serves until SIGINT or SIGTERM, or prints the environment of Ray's nodes; returns the exit status."""
    parser = argparse.ArgumentParser(description="Serve a config on this machine, in the foreground.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", nargs="?", type=Path)
    what.add_argument(
        "--environment",
        action="store_true",
        help="print what the nodes of a cluster need, for a shell's eval, and stop",
    )
    parser.add_argument("--host", help="in place of the config's http_options.host: an address, 0.0.0.0, or ::")
    options = parser.parse_args()
    if options.environment:
        if options.host is not None:
            parser.error("--host goes with a config: on a cluster its http_options.host counts")
        if reason := address.pages_problem():
            print(f"error: {reason}", file=sys.stderr)
            return 1
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.for_cluster().items()))
        return 0
    return _serve(options.config, options.host)


def _serve(path: Path, host: str | None) -> int:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop_by_signal)
    try:
        environment.apply()
        _import_serve()
        config = read_config(path)
        if host is not None:
            config["http_options"] = {**config.get("http_options", {}), "host": host}
        with running(config, on_loss=give_up):
            print(f"ready: {address.url_of(config.get('http_options', {}))} (Ctrl-C stops it)", flush=True)
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
    except Exception as error:  # Ray reads its environment when it is imported
        advice = "look at variables of the environment named RAY_…"
        raise StartError(f"Ray cannot be used ({_in_one_line(error)}): {advice}") from None


def _stop_by_signal(signum: int, _: Any) -> None:
    """The first signal stops the server in order; the next one ends this process, and the guardian ends the others."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda signum, _: os._exit(128 + signum))
    print("stopping", flush=True)
    raise KeyboardInterrupt


def give_up(reason: str) -> None:
    """Ends this process at once, with an error: it may wait for a process that has ended, or Ray would end it."""
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without Ray's exit handlers, which would wait for a Ray that hangs
