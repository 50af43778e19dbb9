"""A process that has imported what tokenizers need, and forks one more for each tokenizer, or for a trial.

Importing takes seconds, forking some milliseconds. It is not multiprocessing's fork server, since each child of that
imports the main module of its parent, which is all of Ray's worker; and it inherits what it is given, no more: no
descriptors, no credentials, nothing to read from.

Whoever it forked ends with it, and it ends with whoever started it: at the end of their common socket.
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

WORKERS = {"tokenizer": "embedding.models.tokenizers.worker", "onnx": "embedding.models.onnx.trial"}
_MAX_JOB_BYTES = 2**16
_REAP_S = 5.0
_START_S = 120.0
_CREDENTIAL = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|_KEY", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1
_SETTINGS = {
    # Threads would not survive the fork.
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RUST_BACKTRACE": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class Within:
    """The kernel ends this process when what is inside takes more CPU time: SIGPROF asks no library."""

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s = cpu_s

    def __enter__(self) -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, self._cpu_s)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Zygote:
    """Started with the first fork, and again when it was found dead. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, job: dict[str, Any]) -> tuple[int, socket.socket]:
        """A new process that does a job.

        Args:
            job: its `kind`, of `WORKERS`, and what that module's `work` takes, as JSON.

        Returns:
            Its process id, for `kill`, and our end of the socket between us. It ends when that is closed.

        Raises:
            OSError: it cannot be had.
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
                    self._end()
                    if attempt:
                        ours.close()
                        raise
        raise AssertionError

    def kill(self, pid: int) -> None:
        """Ends a process that it has forked, if it has not ended yet."""
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.send(json.dumps({"kill": pid}).encode())

    def _ask(self, job: dict[str, Any], theirs: socket.socket) -> int:
        control = self._running()
        socket.send_fds(control, [json.dumps(job).encode()], [theirs.fileno()])
        if not (answer := control.recv(64)):
            raise ConnectionError("the process that forks tokenizers has ended")
        return int(answer)

    def _running(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._end()
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

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


zygote = Zygote()
"""That of this process."""


def die_with_parent() -> None:
    """The kernel kills this process when the one that forked it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _serve(control: socket.socket) -> None:
    """Forks for each job that comes, until the other end is closed."""
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
        if (doomed := job.get("kill")) is not None:
            if doomed in children:  # not reaped yet, so that the number is still its own
                os.kill(doomed, signal.SIGKILL)
            continue
        (descriptor,) = descriptors
        pid = os.fork()
        if pid == 0:
            control.close()
            _be_a_worker(descriptor, job)
        os.close(descriptor)
        children.add(pid)
        control.send(str(pid).encode())


def _reap(children: set[int]) -> None:
    for pid in tuple(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)


def _be_a_worker(descriptor: int, job: dict[str, Any]) -> None:
    """Never returns."""
    status = 1
    try:
        die_with_parent()
        # What panics writes there what a stranger chose.
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 2)
        work: Any = importlib.import_module(WORKERS[job["kind"]]).work
        work(socket.socket(fileno=descriptor), job)
        status = 0
    finally:
        os._exit(status)


def main(descriptor: int) -> None:
    """The process itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    from embedding.models.tokenizers import worker as tokenizer_worker

    tokenizer_worker.preload()
    with contextlib.suppress(ConnectionError):
        _serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
