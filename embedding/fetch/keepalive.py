"""Decides which idle connections may be reused, and detects hosts that send data without a request.

HTTP/1.1 does not say which request an answer belongs to. If a host sends an answer without a request, and it arrives
after the next request was sent, it is taken for the answer to that request. These rules prevent it:

* A new host is on trial: its connections are left idle and watched, and each request gets a new connection. When one of
  them has been open for `trial_s` without receiving anything, the host is trusted and its connections are reused.
* Every idle connection is watched. A host that sends something on one is *caught*: none of its connections is reused
  for ten minutes, and then it is on trial again.
* An answer on a reused connection is rejected if it began before the host had received the request.
* It is also rejected if no bytes have arrived since the request was sent: OpenSSL had read it together with the
  previous answer, and what OpenSSL buffers cannot be seen on the socket.
* It is also rejected if more bytes follow it, or if its host was caught in the meantime.

After a rejected answer the exchange is repeated on a new connection (see `embedding.fetch.exchange`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections import OrderedDict
from contextlib import closing, suppress
from dataclasses import dataclass, field

Origin = tuple[str, str, int]
Ends = tuple[str, str, int, int]
"""Remote address, local address, remote port and local port: the identity of a connection."""

_CAUGHT_S = 600.0
_MAX_HOSTS = 4096
# Connections of one host that is on trial: it may allow few, and these are not reused.
_MAX_ON_TRIAL = 2
# Size of `struct tcp_info` up to tcpi_bytes_received, and the position of that field; see linux/tcp.h.
_TCP_INFO_BYTES, _BYTES_RECEIVED = 136, slice(128, 136)


@dataclass(slots=True)
class _Host:
    """Args:
    trusted: whether it has passed its trial.
    caught_at: time of the event loop at which it last sent something without a request; None = never.
    in_use: number of connections that are in use and may be left open afterwards.
    idle: file descriptors of its idle connections.
    """

    trusted: bool = False
    caught_at: float | None = None
    in_use: int = 0
    idle: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Idle:
    """An idle connection. libcurl owns its file descriptor and may close it; then the number may be reused."""

    origin: Origin
    ends: Ends
    inode: int
    timer: asyncio.TimerHandle | None = None


class KeepAlive:
    """Watches the idle connections of libcurl's connection pool, which owns them.

    Args:
        loop: the event loop.
        keepalive_s: seconds after which an idle connection is shut down; 0 = no connection is kept.
        trial_s: seconds for which a connection of a new host must stay open without receiving anything; 0 = every host
            is trusted.
        max_idle: maximum number of idle connections; the oldest one is shut down first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, keepalive_s: float, trial_s: float, max_idle: int) -> None:
        self._loop = loop
        self._max_idle = max_idle
        self._keepalive_s = keepalive_s
        self._trial_s = trial_s
        self._hosts: OrderedDict[Origin, _Host] = OrderedDict()
        self._idle: dict[int, _Idle] = {}
        self._ends: dict[Ends, int] = {}
        # Its own epoll, from which closed descriptors disappear; the event loop would keep a stale entry for them.
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._on_readable)

    def may_reuse(self, origin: Origin) -> bool:
        """Whether a request may be sent over a connection that has been used before."""
        return self._host(origin).trusted

    def may_keep(self, origin: Origin) -> bool:
        """Whether a new connection may be left open after its first answer."""
        host = self._host(origin)
        if self._keepalive_s <= 0 or self._is_caught(host):
            return False
        return host.trusted or host.in_use + len(host.idle) < _MAX_ON_TRIAL

    def use(self, origin: Origin, change: int) -> None:
        """Changes the number of connections that are in use and may be left open afterwards."""
        host = self._host(origin)
        host.in_use = max(0, host.in_use + change)  # the host may have been removed and added again in between

    def watch(self, origin: Origin, ends: Ends, fd: int) -> None:
        """A connection becomes idle, and is watched from now on."""
        self._forget(fd)
        idle = _Idle(origin, ends, os.fstat(fd).st_ino)
        self._idle[fd] = idle
        self._ends[ends] = fd
        if len(self._idle) > self._max_idle:
            self._shut_down(next(iter(self._idle)))
        host = self._host(origin)
        host.idle.add(fd)
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        on_trial = not host.trusted and self._trial_s < self._keepalive_s
        if on_trial:
            idle.timer = self._loop.call_later(self._trial_s, self._on_trial_passed, fd, idle)
        else:
            idle.timer = self._loop.call_later(self._keepalive_s, self._on_expired, fd, idle)

    def taken(self, ends: Ends) -> int | None:
        """A connection is in use again. Returns its file descriptor; None if it was not idle."""
        fd = self._ends.get(ends)
        if fd is not None:
            self._forget(fd)
        return fd

    def catch(self, origin: Origin) -> None:
        """A host has sent something without a request: shuts down its idle connections, and trusts it no longer."""
        host = self._host(origin)
        host.trusted = False
        host.caught_at = self._loop.time()
        for fd in list(host.idle):
            self._shut_down(fd)

    def caught_since(self, origin: Origin, time: float) -> bool:
        """Whether a host was caught at or after `time`, in the event loop's time."""
        caught_at = self._host(origin).caught_at
        return caught_at is not None and caught_at >= time

    def close(self) -> None:
        """Stops watching. The pool closes the connections."""
        for fd in list(self._idle):
            self._forget(fd)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _host(self, origin: Origin) -> _Host:
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _Host(trusted=self._trial_s <= 0 < self._keepalive_s)
            if len(self._hosts) > _MAX_HOSTS:
                _, oldest = self._hosts.popitem(last=False)
                for fd in list(oldest.idle):
                    self._shut_down(fd)
        self._hosts.move_to_end(origin)
        return host

    def _is_caught(self, host: _Host) -> bool:
        return host.caught_at is not None and self._loop.time() < host.caught_at + _CAUGHT_S

    def _on_trial_passed(self, fd: int, idle: _Idle) -> None:
        """A connection has been open for the duration of a trial without receiving anything."""
        if not _is_same(fd, idle.inode):
            self._forget(fd)
            return
        host = self._host(idle.origin)
        host.trusted = not self._is_caught(host)
        idle.timer = self._loop.call_later(self._keepalive_s - self._trial_s, self._on_expired, fd, idle)

    def _on_expired(self, fd: int, idle: _Idle) -> None:
        self._shut_down(fd)

    def _on_readable(self) -> None:
        """Idle connections are readable, in most cases because the host has closed them."""
        for fd, event in self._epoll.poll(0):
            idle = self._idle.get(fd)
            if idle is None or not _is_same(fd, idle.inode):
                self._forget(fd)
                continue
            # Before it closes a TLS connection the host sends an alert, which is no answer.
            ends = event & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
            if unread(fd) and not (ends and idle.origin[0] == "https"):
                self.catch(idle.origin)
            self._shut_down(fd)

    def _shut_down(self, fd: int) -> None:
        """Shuts a connection down, so that the pool finds it closed. Only the pool may close the descriptor."""
        idle = self._idle.get(fd)
        self._forget(fd)
        if idle is not None and _is_same(fd, idle.inode):
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                sock.shutdown(socket.SHUT_RDWR)

    def _forget(self, fd: int) -> None:
        idle = self._idle.pop(fd, None)
        if idle is None:
            return
        if idle.timer is not None:
            idle.timer.cancel()
        if self._ends.get(idle.ends) == fd:
            del self._ends[idle.ends]
        host = self._hosts.get(idle.origin)
        if host is not None:
            host.idle.discard(fd)
        # Fails if libcurl has closed the descriptor.
        with suppress(OSError):
            self._epoll.unregister(fd)


def unread(fd: int) -> int:
    """Number of bytes that a socket has received and that have not been read; 0 if there is no such socket."""
    return _count(fd, termios.FIONREAD)


def unacknowledged(fd: int) -> int:
    """Number of bytes that a socket has sent and the other side has not acknowledged."""
    return _count(fd, termios.TIOCOUTQ)


def received(fd: int) -> int:
    """Number of bytes that a TCP connection has received since it was opened; 0 if the system does not count them."""
    try:
        with closing(socket.socket(fileno=os.dup(fd))) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return 0
    return int.from_bytes(info[_BYTES_RECEIVED], sys.byteorder)


def _count(fd: int, what: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, what, bytes(4)))[0])
    except OSError:
        return 0


def _is_same(fd: int, inode: int) -> bool:
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False
