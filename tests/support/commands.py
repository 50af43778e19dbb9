"""Commands as an operator runs them, in the environment that an operator has."""

import functools
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib.process import free_port
from operations import environment
from operations.haproxy.config import LISTEN_VARIABLE
from tests.support.marqo_client import MarqoClient
from tests.support.serve import demo_config


class Command:
    """A running command. Its output goes to a file, since a pipe that is not read would stop the process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        """Polls until the condition holds; fails at once if the command ends before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = self.process.poll() is not None and not condition()
            assert not ended, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"waited in vain for {what}:\n{self.output}"
            time.sleep(0.1)

    def wait_for_output(self, text: str) -> None:
        self.wait_for(lambda: text in self.output, repr(text))

    def wait_until_healthy(self, url: str) -> MarqoClient:
        client = MarqoClient(url)

        def healthy() -> bool:
            try:
                return client.get("/healthz").status_code == 200
            except httpx.TransportError:
                return False

        self.wait_for(healthy, "a healthy server")
        return client


@functools.cache
def set_here() -> dict[str, str]:
    """Sets Ray up for the session's own server, once; gives what that took."""
    return environment.apply()


def operators_environment() -> dict[str, str]:
    """As it was before this process set Ray up for the session's own server, ports included."""
    ours = {*set_here(), LISTEN_VARIABLE}
    return {k: v for k, v in os.environ.items() if k not in ours} | {"PYTHONUNBUFFERED": "1"}


def config_on_free_port() -> dict[str, Any]:
    config = demo_config()
    config["http_options"]["port"] = free_port()
    return config
