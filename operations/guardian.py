"""Ends whatever a launch has started when its launcher has ended, in whatever way that was.

    python -I -S guardian.py LAUNCH LAUNCHER_PIDFD

Ray's own processes end with their parents only after a while, HAProxy and decoders not always, and what holds the port
or memory then keeps the next start from working. A guardian is started before all of them, in a session of its own so
that no Ctrl-C reaches it. Processes are known by a variable in the environment that they were started with, which
children inherit. The standard library alone: it is small and starts within some hundredths of a second. Linux.
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
"""The variable: process id of the launcher, when that started, its namespace of process ids, and which launch of it."""
CALM_LOOKS = 3
"""What is between fork and exec has no marker yet: one look that finds nothing proves nothing."""
BETWEEN_LOOKS_S = 0.05
PATIENCE_S = 60.0
"""The kernel can keep a killed process for as long as it writes a core or waits for a disk."""


class Guardian:
    """The launcher's side: a launch and the process that watches over it. Another takes its place if it is killed.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self.launch = f"{os.getpid()}.{_started(os.getpid())}.{_namespace()}.{uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._closed = False
        self._process = self._started_process()
        threading.Thread(target=self._replace, name="guardian", daemon=True).start()

    @contextlib.contextmanager
    def marked(self) -> Iterator[None]:
        """What is started within the context belongs to the launch, with all its children."""
        # Processes that give themselves a title, as Ray's do, write it over their environment, unless told not to.
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
        """Ends all that belongs to the launch and still runs; returns when it has ended."""
        with self._lock:
            self._closed = True
            process = self._process
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)

    def _replace(self) -> None:
        while True:
            self._process.wait()
            with self._lock:
                if self._closed:
                    return
                with contextlib.suppress(OSError):  # no memory, no process ids: tried again
                    self._process = self._started_process()
            time.sleep(BETWEEN_LOOKS_S)

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
    """Ends what is left of launches whose launchers have ended; returns when it has ended. For a start that follows a
    death at once, and for launchers that were killed together with their guardians."""
    _end(lambda marker: marker is not None and _has_ended(marker))


def _end(belongs: Callable[[str | None], bool]) -> None:
    """Kills processes by their markers, and all their descendants, until there are none."""
    deadline, calm = time.monotonic() + PATIENCE_S, 0
    while calm < CALM_LOOKS and time.monotonic() < deadline:
        killed = [pidfd for pid in _members(belongs) if (pidfd := _kill(pid)) is not None]
        calm = 0 if killed else calm + 1
        _wait(killed, deadline)
        time.sleep(BETWEEN_LOOKS_S)


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
    """The fields of /proc/PID/stat from the third on: its second is the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _started(pid: int) -> str:
    return _stat(pid)[19]


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _marker(pid: int) -> str | None:
    """None also for the processes of others."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    start = f"{MARKER}=".encode()
    found = [part for part in environment.split(b"\0") if part.startswith(start)]
    return found[-1][len(start) :].decode(errors="replace") if found else None


def _has_ended(marker: str) -> bool:
    """Not known, and so False, of launchers in another namespace of process ids, such as a container's."""
    pid, started, namespace, _ = f"{marker}...".split(".", 3)
    if namespace != _namespace() or not pid.isdecimal():
        return False
    try:
        fields = _stat(int(pid))
    except (ProcessLookupError, FileNotFoundError):
        return True
    return fields[0] in ("Z", "X") or fields[19] != started


def _kill(pid: int) -> int | None:
    """A descriptor that is readable when the process has ended, its sockets closed."""
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
    """Waits until the launcher has ended, or closes its end of the pipe; then ends the launch."""
    launch, launcher = sys.argv[1], int(sys.argv[2])
    # Who stops a group of processes, as systemd does, means the launcher; this ends after it.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    poll = select.poll()
    poll.register(launcher, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    poll.poll()
    _end(lambda marker: marker == launch)


if __name__ == "__main__":
    main()
