"""The picture host at the far end of an emulated link: `python -m benchmarks.lib.link_host ADDRESS PORT`.

`GET /SIZE/ANYTHING` answers with so many bytes. `GET /log` answers with the moment at which each path was asked for
since the last `GET /log`. A thread for each connection needs little CPU time.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time

from benchmarks.lib.namespaces import die_with_parent

CONGESTION_CONTROL = b"cubic"
"""As most servers have it, whatever the default of this machine is."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


class LinkHost:
    """Serves on a socket that listens already."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._asked: dict[str, float] = {}

    def serve(self) -> None:
        """Accepts connections until the process ends."""
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            while chunk := connection.recv(8192):
                received += chunk
                while b"\r\n\r\n" in received:
                    head, _, received = received.partition(b"\r\n\r\n")
                    body = self._body(head.split(b" ", 2)[1].decode())
                    connection.sendall(HEAD % len(body))
                    connection.sendall(body)

    def _body(self, path: str) -> bytes:
        if path == "/log":
            asked, self._asked = self._asked, {}
            return json.dumps(asked).encode()
        self._asked[path] = time.monotonic()
        return bytes(int(path.split("/")[1]))


def main() -> None:
    """Listens, prints `ready`, and serves."""
    die_with_parent()
    with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024) as listening:
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
        print("ready", flush=True)
        LinkHost(listening).serve()


if __name__ == "__main__":
    main()
