"""Messages over a stream socket, each with its length in front, of which the reader sets the bound."""

from __future__ import annotations

import socket
import time

_HEAD_BYTES = 8


class TooLong(Exception):
    """A message is announced that is longer than it may be."""


def send(connection: socket.socket, message: bytes, timeout_s: float | None = None) -> None:
    """Sends one message.

    Raises:
        OSError: the other end is closed, or did not take it in time.
    """
    connection.settimeout(timeout_s)
    connection.sendall(len(message).to_bytes(_HEAD_BYTES, "little") + message)


def receive(connection: socket.socket, most: int, timeout_s: float | None = None) -> bytes:
    """The next message, of at most `most` bytes, within `timeout_s` seconds in all.

    Raises:
        EOFError: the other end is closed.
        TooLong: it is longer.
        OSError: TimeoutError, or whatever the connection has.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    length = int.from_bytes(_exactly(connection, _HEAD_BYTES, deadline), "little")
    if length > most:
        raise TooLong(f"{length} bytes instead of at most {most}")
    return bytes(_exactly(connection, length, deadline))


def _exactly(connection: socket.socket, count: int, deadline: float | None) -> bytearray:
    received = bytearray()
    while len(received) < count:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        part = connection.recv(min(count - len(received), 2**20))
        if not part:
            raise EOFError
        received += part
    return received
