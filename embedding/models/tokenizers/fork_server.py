"""A process that imports the libraries of tokenizers once, and forks a worker for each tokenizer or dry run of a graph.

Importing takes seconds, forking some milliseconds. multiprocessing's fork server does not do: its children import the
main module of their parent, which is all of Ray's worker. The workers inherit nothing that they do not need: no
descriptors but their socket, no credentials, no standard input.

The workers end with the fork server, and it ends with the process that started it, when their common socket closes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

WORKERS = {"tokenizer": "embedding.models.tokenizers.worker", "onnx": "embedding.models.onnx.dry_run"}
_MAX_JOB_BYTES = 2**16
_REAP_S = 5.0
_START_S = 120.0
_CREDENTIAL = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|_KEY", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1
_SETTINGS = {
    # Single-threaded libraries: the threads of a process do not survive a fork.
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class CpuTimeLimit:
    """Kills this process if the code within the context takes more CPU time. The signal SIGPROF also ends native code,
    since nothing handles it."""

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s = cpu_s

    def __enter__(self) -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, self._cpu_s)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)


class ForkServer:
    """Starts the fork server process with the first fork, and again when it has died. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, job: dict[str, Any]) -> tuple[int, socket.socket]:
        """Forks a worker for a job.

        Args:
            job: its `kind`, a key of `WORKERS`, and what the `work` function of that module takes, as JSON values.

        Returns:
            The worker's process id, for `kill`, and the caller's end of its socket. The worker ends when it is closed.

        Raises:
            OSError: no process can be started.
            ValueError: the job is too large.
        """
        if len(json.dumps(job)) > _MAX_JOB_BYTES:
            raise ValueError("a job of too many characters")
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            for attempt in (0, 1):
                try:
                    return self._ask(job, theirs), ours
                except OSError:
                    self._stop()
                    if attempt:
                        ours.close()
                        raise
        raise AssertionError

    def kill(self, pid: int) -> None:
        """Kills a worker that has not ended yet."""
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.send(json.dumps({"kill": pid}).encode())

    def _ask(self, job: dict[str, Any], theirs: socket.socket) -> int:
        control = self._ensure_running()
        socket.send_fds(control, [json.dumps(job).encode()], [theirs.fileno()])
        if not (answer := control.recv(64)):
            raise ConnectionError("the process that forks tokenizers has ended")
        return int(answer)

    def _ensure_running(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_S)
        environment = {name: value for name, value in os.environ.items() if not _CREDENTIAL.search(name)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                env=environment | _SETTINGS | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._control = ours
        return ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


fork_server = ForkServer()
"""The only one in this process."""


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that forked it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _serve(control: socket.socket) -> None:
    """Forks a worker for each job that arrives, until the other end is closed."""
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control], [], [], _REAP_S)
        _reap(children)
        if not ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_JOB_BYTES, 1)
        if not message:
            return
        job = json.loads(message)
        if (victim := job.get("kill")) is not None:
            if victim in children:  # not reaped yet, so the process id cannot have been reused
                os.kill(victim, signal.SIGKILL)
            continue
        (descriptor,) = descriptors
        pid = os.fork()
        if pid == 0:
            control.close()
            _run_worker(descriptor, job)
        os.close(descriptor)
        children.add(pid)
        control.send(str(pid).encode())


def _reap(children: set[int]) -> None:
    for pid in tuple(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)


def _run_worker(descriptor: int, job: dict[str, Any]) -> None:
    """Runs a job in a forked process. Never returns."""
    status = 1
    try:
        die_with_parent()
        # A panic writes text from an untrusted request to stderr, which must not reach the log.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        work: Any = importlib.import_module(WORKERS[job["kind"]]).work
        work(socket.socket(fileno=descriptor), job)
        status = 0
    finally:
        os._exit(status)


def main(descriptor: int) -> None:
    """Runs the fork server process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it ends it
    from embedding.models.tokenizers import worker as tokenizer_worker

    tokenizer_worker.preload()
    with contextlib.suppress(ConnectionError):
        _serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
