"""Takes over from a HAProxy that was killed, until Ray has started another one.

    python fallback.py HAPROXY_PID ACTOR_PID FOLDER BINARY

Ray notices a dead HAProxy after three seconds and needs three more to replace it; meanwhile every connection would be
refused. `wrapper` starts this process beside each HAProxy that listens for requests, in a session of its own, because
Ray ends HAProxy's process group together with the actor that supervises it. It uses only the standard library.

Ray also stops HAProxy for good with the signal that kills it, so a fallback starts then too, unless HAProxy was drained
(drain.py). It ends with Ray's node at the latest, and never runs for more than `TIMEOUT_S`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 30.0
LISTENING = "listening.pid"
"""Holds the process id of the HAProxy that listens for requests; `wrapper` writes it. Without it no fallback starts."""


def main() -> None:
    """Waits for the end of HAProxy, then runs another one with the configuration `fallback.cfg`."""
    haproxy_pid, actor, folder, binary = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    try:
        haproxy, node = os.pidfd_open(haproxy_pid), os.pidfd_open(_parent(actor))
    except (ProcessLookupError, FileNotFoundError):
        return
    if node in _ended(haproxy, node):
        # No other process ends HAProxy then; Ray's processes end by themselves.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(haproxy, signal.SIGKILL)
        return
    listening = folder / LISTENING
    if not listening.exists() or listening.read_text().split() != [str(haproxy_pid)]:
        return
    note = folder / "fallback.pid"
    with subprocess.Popen(
        [binary, "-db", "-f", str(folder / "fallback.cfg")], stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        note.write_text(str(process.pid))
        own = os.pidfd_open(process.pid)
        # Ray's next HAProxy sends the first of these signals itself, as soon as it listens.
        for signum in (signal.SIGUSR1, signal.SIGKILL):
            ended = _ended(own, node, timeout_s=TIMEOUT_S)
            if own in ended:
                break
            process.send_signal(signal.SIGKILL if node in ended else signum)
    note.unlink(missing_ok=True)


def _parent(pid: int) -> int:
    """The parent of a process; for Ray's workers the process of their node."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _ended(*pidfds: int, timeout_s: float | None = None) -> list[int]:
    """Waits until one of these processes has ended; returns those that have, none after the timeout."""
    return select.select(pidfds, [], [], timeout_s)[0]


if __name__ == "__main__":
    main()
