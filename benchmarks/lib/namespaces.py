"""Network namespaces and tun devices of Linux, for a process that has the rights to make them.

All of them end with the processes that hold them, however those end: nothing has to be cleaned up.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

_NEW_NETWORK = 0x40000000
_PARENT_DEATH_SIGNAL = 1
_TUN_SET_INTERFACE = 0x400454CA
_TUN, _NO_PACKET_INFO = 0x0001, 0x1000
_DEVICE = "link"

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it ends."""
    _call("prctl", _PARENT_DEATH_SIGNAL, signal.SIGKILL)


def new_network() -> None:
    """Moves this thread into a new network namespace, in which loopback is up.

    Raises:
        OSError: the kernel does not allow it.
    """
    _call("unshare", _NEW_NETWORK)
    _ip("link", "set", "lo", "up")


def enter_network(pid: int) -> None:
    """Moves this thread into the network namespace of another process.

    Raises:
        OSError: the kernel does not allow it.
    """
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        _call("setns", namespace.fileno(), _NEW_NETWORK)


@contextlib.contextmanager
def inside_network(namespace: Path) -> Iterator[None]:
    """Moves this thread into a network namespace while the context lasts. Threads and processes that it starts there
    stay.

    Raises:
        OSError: the kernel does not allow it.
    """
    with Path("/proc/thread-self/ns/net").open() as before, namespace.open() as there:
        _call("setns", there.fileno(), _NEW_NETWORK)
        try:
            yield
        finally:
            _call("setns", before.fileno(), _NEW_NETWORK)


def tun(address: str, peer: str, mtu: int, initial_window: int) -> int:
    """Makes a tun device in this thread's network namespace, which is up.

    Args:
        address: IPv4, of this end.
        peer: IPv4, of the other end.
        mtu: bytes of the largest packet.
        initial_window: segments that a new connection sends at once.

    Returns:
        The non-blocking descriptor that its packets are read from and written to.

    Raises:
        OSError: the kernel does not allow it, or has no tun devices.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUN_SET_INTERFACE, struct.pack("16sH22x", _DEVICE.encode(), _TUN | _NO_PACKET_INFO))
    # The device's own queue must never drop packets: only the router's buffer does.
    _ip("link", "set", "dev", _DEVICE, "mtu", str(mtu), "txqueuelen", "10000", "up")
    _ip("address", "add", f"{address}/32", "dev", _DEVICE)
    _ip("route", "add", f"{peer}/32", "dev", _DEVICE, "src", address, "initcwnd", str(initial_window))
    return descriptor


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        raise OSError(f"ip {' '.join(arguments)}: {error.stderr.strip()}") from error


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
