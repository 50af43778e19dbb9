"""Runs a config on this machine, in the foreground: `serve run`, with a start that works or says why not.

    python -m deployments.launch config/demo.yaml
    eval "$(python -m deployments.launch --environment)"; ray start …

Against `serve run`, it refuses a busy port (two proxies would share it, each with half of the requests), notices a
failed deployment instead of waiting for ever, keeps all of Ray's own ports on loopback, and starts no dashboard. The
second form is for the nodes of a cluster: the same settings, but for those of a single machine.
"""

import argparse
import contextlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deployments import address, machine
from deployments.environment import CLUSTER

START_TIMEOUT_S = 600.0


class StartError(Exception):
    """The server cannot be started; the message is one sentence for the operator."""


def read_config(path: Path) -> dict[str, Any]:
    """A Serve config file, with our arguments checked: Serve itself would fail much later, or not at all.

    Raises:
        StartError: the file is missing, is not YAML, or holds an argument that we do not know.
    """
    from graph import GraphArgs

    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        for application in config["applications"]:
            GraphArgs.model_validate(application.get("args") or {})
    except OSError as error:
        raise StartError(f"cannot read the config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise StartError(f"the config {path} is not YAML: {' '.join(str(error).split())}") from None
    except (KeyError, TypeError):
        raise StartError(f"the config {path} is not a Serve config: it has no list `applications`") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise StartError(f"the config {path} has bad args: {problems}") from None
    return config


@contextlib.contextmanager
def running(config: Mapping[str, Any], **ray_options: Any) -> Iterator[Any]:
    """A local Ray and Serve with the applications of `config`, all ready; stopped at the end of the context.

    Args:
        config: as `read_config` gives it.
        ray_options: for `ray.init`.

    Yields:
        Serve's client, which can deploy further configs.

    Raises:
        StartError: the machine lacks something, the port is busy, or a deployment failed.
    """
    check_machine()
    http = config.get("http_options", {})
    check_port(address.host_of(http), http.get("port", address.DEFAULT_PORT))
    http_options = address.for_serve(http)

    import ray
    from ray import serve
    from ray.serve._private.api import serve_start

    ray.init(**({"include_dashboard": False, "namespace": "serve"} | ray_options))
    try:
        try:
            client = serve_start(http_options=http_options, proxy_location=config.get("proxy_location", "EveryNode"))
        except Exception as error:
            raise StartError(f"Serve did not start: {type(error).__name__}: {' '.join(str(error).split())}") from None
        deploy(client, config)
        yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(client: Any, config: Mapping[str, Any], timeout_s: float = START_TIMEOUT_S) -> None:
    """Deploys `config` and waits until all of it runs.

    Raises:
        StartError: a deployment failed, or was not ready in time.
    """
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    client.deploy_apps(ServeDeploySchema.model_validate(address.for_schema(config)), _blocking=False)
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
    url = address.url_of(config.get("http_options", {}))
    try:
        with requests.Session() as session:
            session.trust_env = False  # a proxy may not know this machine
            reply = session.get(f"{url}/-/routes", timeout=5, allow_redirects=False)
        return reply.ok and names <= set(reply.json().values())
    except requests.RequestException:
        return False


def check_machine() -> None:
    """Raises limits of this process as far as it may, and StartError if the machine lacks something."""
    machine.raise_limits()
    if reason := machine.trouble():
        raise StartError(reason)


def check_port(host: str | None, port: int) -> None:
    """Raises StartError if it cannot be listened at; Serve's own proxy would quietly share the port."""
    if reason := address.trouble(host, port):
        raise StartError(reason)


def _why(applications: Mapping[str, Any]) -> str:
    """The last line of the first failure: Serve's messages end with the exception, after its traceback."""
    messages = [d.message for a in applications.values() for d in a.deployments.values()]
    messages += [application.message for application in applications.values()]
    lines = [line.strip() for message in messages if message for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["no reason was given"])[-1]


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
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    try:
        config = read_config(path)
        with running(config):
            print(f"ready: {address.url_of(config.get('http_options', {}))} (Ctrl-C stops it)", flush=True)
            stop.wait()
            print("stopping", flush=True)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
