"""Stands in for a HAProxy that was killed, until Ray has started another.

    python fallback.py HAPROXY_PID ACTOR_PID FOLDER BINARY

Ray notices a dead front door after three seconds and needs three more to replace it; until then every connection
would be refused. Started by `wrapper` beside each HAProxy that listens, in a session of its own, because
Ray ends HAProxy's process group together with the actor that supervises it. It needs the standard library alone.

Ray stops a front door for good by the same signal that kills one, so a fallback also follows that, but never outlives
Ray's node, and never lasts for more than `TIMEOUT_S`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 30.0


def main() -> None:
    """Waits for HAProxy's end, and is a HAProxy of the same configuration from then on."""
    haproxy, actor, folder, binary = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    try:
        door, node = os.pidfd_open(haproxy), os.pidfd_open(_parent(actor))
    except (ProcessLookupError, FileNotFoundError):
        return
    if node in _ended(door, node):
        # Nobody else ends it then: Ray's other processes end by themselves.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(door, signal.SIGKILL)
        return
    if (folder / "listening.pid").read_text().split() != [str(haproxy)]:
        return
    note = folder / "fallback.pid"
    with subprocess.Popen(
        [binary, "-db", "-f", str(folder / "fallback.cfg")], stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        note.write_text(str(process.pid))
        own = os.pidfd_open(process.pid)
        # Ray's next HAProxy sends the first of these itself, once it listens.
        for signum in (signal.SIGUSR1, signal.SIGKILL):
            ended = _ended(own, node, timeout_s=TIMEOUT_S)
            if own in ended:
                break
            process.send_signal(signal.SIGKILL if node in ended else signum)
    note.unlink(missing_ok=True)


def _parent(pid: int) -> int:
    """Ray's node process, for one of its workers."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _ended(*pidfds: int, timeout_s: float | None = None) -> list[int]:
    """Waits until one of these processes has ended, and says which have."""
    return select.select(pidfds, [], [], timeout_s)[0]


if __name__ == "__main__":
    main()
