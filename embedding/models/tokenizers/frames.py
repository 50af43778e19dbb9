"""Messages over a stream socket, each preceded by its length, which the receiver limits."""

from __future__ import annotations

import socket
import time

_HEAD_BYTES = 8


class TooLong(Exception):
    """The next message is longer than the receiver allows."""


def send(connection: socket.socket, message: bytes, timeout_s: float | None = None) -> None:
    """Sends one message.

    Raises:
        OSError: the other end is closed, or did not receive it in time.
    """
    connection.settimeout(timeout_s)
    connection.sendall(len(message).to_bytes(_HEAD_BYTES, "little") + message)


def receive(connection: socket.socket, max_bytes: int, timeout_s: float | None = None) -> bytes:
    """Receives the next message, of at most `max_bytes` bytes, within `timeout_s` seconds altogether.

    Raises:
        EOFError: the other end is closed.
        TooLong: the message is longer.
        OSError: TimeoutError, or another failure of the connection.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    length = int.from_bytes(_receive_exactly(connection, _HEAD_BYTES, deadline), "little")
    if length > max_bytes:
        raise TooLong(f"{length} bytes instead of at most {max_bytes}")
    return bytes(_receive_exactly(connection, length, deadline))


def _receive_exactly(connection: socket.socket, count: int, deadline: float | None) -> bytearray:
    received = bytearray()
    while len(received) < count:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        part = connection.recv(min(count - len(received), 2**20))
        if not part:
            raise EOFError
        received += part
    return received
