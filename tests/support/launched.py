"""`operations.launch` as an operator starts it, under whatever environment, limits and mounts."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port
from tests.support.commands import Command, operators_environment

READY = "ready: http://"


def empty_config(port: int | None = None, **http: Any) -> dict[str, Any]:
    """The smallest application, at a free port."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"port": port or free_port(), **http},
        "applications": [{"name": "empty", "route_prefix": "/", "import_path": "tests.support.empty_app:app"}],
    }


@contextlib.contextmanager
def launched(
    folder: Path,
    config: Mapping[str, Any],
    environment: Mapping[str, str | None] | None = None,
    before: Callable[[], None] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Command]:
    """Starts a config, and ends it by Ctrl-C.

    Args:
        folder: for the config and what the server prints.
        config: of Serve.
        environment: on top of the operator's; None takes a variable away.
        before: called in the process before the launcher begins.
        within: words that go before the launcher's own command.
    """
    path, log = folder / "config.yaml", folder / "log"
    path.write_text(yaml.safe_dump(dict(config)))
    variables = operators_environment() | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "operations.launch", str(path)],
            cwd=ROOT,
            env={name: value for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=before,
        )
    command = Command(process, log)
    try:
        yield command
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
        process.wait(90)


def refusal(command: Command) -> str:
    """The one sentence of a launcher that did not start."""
    assert command.process.wait(90) == 1, command.output
    lines = [line for line in command.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, command.output
    assert "Traceback" not in command.output
    return lines[0]
