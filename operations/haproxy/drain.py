"""Lets HAProxy finish the requests in flight before it is stopped: Serve's own shutdown begins with killing it.

    python -m operations.haproxy.drain /tmp/haproxy-serve/*/admin.sock      on each node of a cluster, before a stop

A launcher does it by itself. This command waits for at most twenty seconds, and fails if requests are left then.
Sockets at which no HAProxy answers, such as those of nodes that have ended, are passed over.
"""

import argparse
import csv
import socket
import sys
import time
from pathlib import Path

from operations.haproxy.config import FRONTEND
from operations.haproxy.fallback import LISTENING

POLL_S = 0.1
ANSWER_TIMEOUT_S = 2.0
"""For one command."""
DRAIN_S = 20.0
"""The longest that the command waits for each HAProxy."""


def drain(commands: Path, timeout_s: float) -> int:
    """Closes HAProxy's port for requests, and waits until no request is in flight. No fallback takes over afterwards.

    Connections that are open stay open, and requests that still come on them are answered.

    Args:
        commands: HAProxy's socket for commands.
        timeout_s: the longest that it waits.

    Returns:
        How many requests are in flight at the end: 0 before the timeout.

    Raises:
        OSError: no HAProxy answers.
    """
    deadline = time.monotonic() + timeout_s
    (commands.parent / LISTENING).unlink(missing_ok=True)
    _answer(commands, f"disable {FRONTEND}")
    while (waiting := in_flight(commands)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return waiting


def in_flight(commands: Path) -> int:
    """The number of requests that HAProxy has sent to replicas, or that queue for one, and that are not answered yet.

    Raises:
        OSError: no HAProxy answers.
    """
    backends = 2  # the type of object, in the manual's section on `show stat`
    table = _answer(commands, f"show stat -1 {backends} -1").removeprefix("# ").splitlines()
    return sum(int(row["scur"]) for row in csv.DictReader(filter(None, table)))


def main() -> int:
    """Drains each HAProxy whose socket is named; returns the exit status."""
    parser = argparse.ArgumentParser(description="Let the HAProxy of a node finish its requests.")
    parser.add_argument("sockets", nargs="+", type=Path, metavar="SOCKET")
    left = drained = 0
    for commands in parser.parse_args().sockets:
        try:
            left += drain(commands, DRAIN_S)
            drained += 1
        except OSError:  # its HAProxy has ended
            continue
    print(f"{drained} HAProxy drained, {left} requests are not answered yet")
    return 0 if drained and not left else 1


def _answer(commands: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(str(commands))
        connection.sendall(f"{command}\n".encode())
        with connection.makefile(encoding="utf-8", errors="replace") as answer:
            return answer.read()


if __name__ == "__main__":
    sys.exit(main())
