"""Ends all processes of a launch when its launcher has ended, for whatever reason.

    python -I -S guardian.py LAUNCH LAUNCHER_PIDFD

Ray's processes end some time after their parents, HAProxy and decoders not always; as long as they hold the port or
memory, the server cannot be started again. A guardian is started before them, in a session of its own so that Ctrl-C
does not reach it. The processes of a launch are identified by a variable in their initial environment, which children
inherit. The module uses only the standard library, is small, and starts within some hundredths of a second. Linux only.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

MARKER = "MARQO_LAUNCH"
"""The variable. Its value: process id and start time of the launcher, its PID namespace, and an id of the launch."""
EMPTY_SCANS = 3
"""Scans without a process after which all have ended: one is not enough, since a process between fork and exec has no
marker yet."""
SCAN_PERIOD_S = 0.05
TIMEOUT_S = 60.0
"""A killed process can stay for as long as the kernel writes its core dump or waits for a disk."""


class Guardian:
    """The launcher's side: starts the guardian process of a launch, and another one if that is killed.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self) -> None:
        self.launch = f"{os.getpid()}.{_started(os.getpid())}.{_namespace()}.{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._closed = False
        self._process = self._started_process()
        threading.Thread(target=self._replace, name="guardian", daemon=True).start()

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """Processes that are started within the context belong to the launch, with all their children."""
        # Processes that set a title, as Ray's do, write it over their environment unless SPT_NOENV is set.
        marks = {MARKER: self.launch, "SPT_NOENV": "1"}
        before = {name: os.environ.get(name) for name in marks}
        os.environ.update(marks)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def end_all(self) -> None:
        """Ends all processes of the launch; returns when they have ended."""
        with self._lock:
            self._closed = True
            process = self._process
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TIMEOUT_S)

    def _replace(self) -> None:
        while True:
            self._process.wait()
            with self._lock:
                if self._closed:
                    return
                with contextlib.suppress(OSError):  # no memory or no process ids: the next round tries again
                    self._process = self._started_process()
            time.sleep(SCAN_PERIOD_S)

    def _started_process(self) -> subprocess.Popen[bytes]:
        launcher = os.pidfd_open(os.getpid())
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, self.launch, str(launcher)],
                stdin=subprocess.PIPE,
                start_new_session=True,
                pass_fds=[launcher],
                env={},
            )
        finally:
            os.close(launcher)


def end_orphans() -> None:
    """Ends the processes of launches whose launchers have ended; returns when they have ended. Needed if a launcher was
    killed together with its guardian, or if the guardian has not finished."""
    _end(lambda marker: marker is not None and _has_ended(marker))


def _end(belongs: Callable[[str | None], bool]) -> None:
    """Kills processes by their markers, and all their descendants, until there are none."""
    deadline, empty_scans = time.monotonic() + TIMEOUT_S, 0
    while empty_scans < EMPTY_SCANS and time.monotonic() < deadline:
        killed = [pidfd for pid in _members(belongs) if (pidfd := _kill(pid)) is not None]
        empty_scans = 0 if killed else empty_scans + 1
        _wait(killed, deadline)
        time.sleep(SCAN_PERIOD_S)


def _members(belongs: Callable[[str | None], bool]) -> set[int]:
    parents = dict(_parents())
    members = {pid for pid in parents if belongs(_marker(pid))}
    while grown := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= grown
    return members - {os.getpid()}


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if folder.name.isdecimal():
                state, parent = _stat(int(folder.name))[:2]
                if state not in ("Z", "X"):
                    yield int(folder.name), int(parent)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on. The second is the name, which may contain any character."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _started(pid: int) -> str:
    return _stat(pid)[19]


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _marker(pid: int) -> str | None:
    """The value of the variable; None if there is none, or if the process belongs to another user."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    start = f"{MARKER}=".encode()
    found = [part for part in environment.split(b"\0") if part.startswith(start)]
    return found[-1][len(start) :].decode(errors="replace") if found else None


def _has_ended(marker: str) -> bool:
    """Whether a marker's launcher has ended; False if it is in another PID namespace (another container)."""
    pid, started, namespace, _ = f"{marker}...".split(".", 3)
    if namespace != _namespace() or not pid.isdecimal():
        return False
    try:
        fields = _stat(int(pid))
    except (ProcessLookupError, FileNotFoundError):
        return True
    return fields[0] in ("Z", "X") or fields[19] != started


def _kill(pid: int) -> int | None:
    """Kills a process; returns a pidfd, which is readable when the process has ended and its sockets are closed."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        os.close(pidfd)
        return None
    return pidfd


def _wait(pidfds: list[int], deadline: float) -> None:
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        os.close(pidfd)


def main() -> None:
    """Waits until the launcher has ended, or has closed its end of the pipe; then ends the launch."""
    launch, launcher = sys.argv[1], int(sys.argv[2])
    # Signals to a whole group of processes, as systemd sends them, are for the launcher; this process ends after it.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    poll = select.poll()
    poll.register(launcher, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    poll.poll()
    _end(lambda marker: marker == launch)


if __name__ == "__main__":
    main()
