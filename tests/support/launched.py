"""`operations.launch` as an operator starts it, under whatever environment, limits and mounts."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.cluster import kill
from benchmarks.lib.places import ROOT
from benchmarks.lib.process import descendants, free_port
from tests.support.commands import Command, operators_environment

READY = "ready: http://"
STOP_S = 90.0


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
    options: Sequence[str] = (),
) -> Iterator[Command]:
    """Starts a config, and ends it by Ctrl-C. It must end with status 0 then, unless it has ended before.

    Args:
        folder: for the config and what the server prints.
        config: of Serve.
        environment: on top of the operator's; None takes a variable away.
        before: called in the process before the launcher begins.
        within: words that go before the launcher's own command.
        options: of the launcher.
    """
    path, log = folder / "config.yaml", folder / "log"
    path.write_text(yaml.safe_dump(dict(config)))
    variables = operators_environment() | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "operations.launch", *options, str(path)],
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
        ended_before = process.poll() is not None
        status = stopped(process)
    assert ended_before or status == 0, command.output


def stopped(process: subprocess.Popen[bytes]) -> int:
    """Ends a server by Ctrl-C, unless it has ended, and returns its exit status.

    Raises:
        subprocess.TimeoutExpired: it did not end, and was killed with all that it had started.
    """
    family = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        kill(*(member.pid for member in family))
        process.wait()
        raise


def refusal(command: Command) -> str:
    """The one sentence of a launcher that did not start."""
    assert command.process.wait(90) == 1, command.output
    lines = [line for line in command.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, command.output
    assert "Traceback" not in command.output
    return lines[0]
