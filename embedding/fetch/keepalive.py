"""Which hosts' connections are used again, and what is done about hosts that speak unasked.

Nothing in HTTP/1.1 says which request an answer belongs to, so an answer that nobody asked for becomes the next
request's, if it arrives after that was sent. What can be done:

* A host is on trial first: its connections are left idle and watched, and every request gets a new one. When one
  of them has been open and silent for `trial_s`, connections of the host are used again.
* Every idle connection is watched. A host that says something on one is caught: none of its connections is used
  again for ten minutes, and then it is on trial anew.
* An answer on a used connection that began before the host had received the request is none.
* Nor is one of which nothing has arrived since the request was sent: OpenSSL read it with the last answer, and what it
  holds cannot be seen by a watch over the socket.
* An answer on a used connection that is followed by more bytes, or whose host was caught meanwhile, is doubted.

Whoever has such an answer asks again on a new connection.
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
"""Remote and local address, remote and local port: what tells connections apart."""

_CAUGHT_S = 600.0
_MOST_HOSTS = 4096
# Of one host: it may allow few, and those on trial are of no use.
_MOST_ON_TRIAL = 2
# tcpi_bytes_received of `struct tcp_info` in linux/tcp.h.
_TCP_INFO_BYTES, _BYTES_RECEIVED = 136, slice(128, 136)


@dataclass(slots=True)
class _Host:
    """Args:
    trusted: it has passed its trial.
    caught_at: when it last spoke unasked, in the loop's time.
    in_use: connections that are in use and may be left open afterwards.
    idle: file descriptors of its idle connections.
    """

    trusted: bool = False
    caught_at: float | None = None
    in_use: int = 0
    idle: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Idle:
    """An idle connection. Its file descriptor is libcurl's, which may close it, and the number be used again."""

    origin: Origin
    ends: Ends
    inode: int
    timer: asyncio.TimerHandle | None = None


class KeepAlive:
    """Keeps watch over the idle connections of a pool that it does not own.

    Args:
        loop: what it runs on.
        keepalive_s: seconds after which an idle connection is shut down; 0 = none is kept.
        trial_s: seconds for which a first connection of a host must stay open and silent; 0 = hosts are trusted.
        max_idle: connections; the oldest gives way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, keepalive_s: float, trial_s: float, max_idle: int) -> None:
        self._loop = loop
        self._max_idle = max_idle
        self._keepalive_s = keepalive_s
        self._trial_s = trial_s
        self._hosts: OrderedDict[Origin, _Host] = OrderedDict()
        self._idle: dict[int, _Idle] = {}
        self._ends: dict[Ends, int] = {}
        # An epoll of its own: a closed descriptor leaves it by itself, while the loop's would keep a stale entry.
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._spoken)

    def may_reuse(self, origin: Origin) -> bool:
        """Whether a request may be sent over a connection that has been used."""
        return self._host(origin).trusted

    def may_keep(self, origin: Origin) -> bool:
        """Whether a new connection may be left open after its first answer."""
        host = self._host(origin)
        if self._keepalive_s <= 0 or self._is_caught(host):
            return False
        return host.trusted or host.in_use + len(host.idle) < _MOST_ON_TRIAL

    def use(self, origin: Origin, change: int) -> None:
        """Counts connections that are in use and may be left open afterwards."""
        host = self._host(origin)
        host.in_use = max(0, host.in_use + change)  # it may have been forgotten meanwhile

    def watch(self, origin: Origin, ends: Ends, fd: int) -> None:
        """A connection is idle from now on."""
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
            idle.timer = self._loop.call_later(self._trial_s, self._passed, fd, idle)
        else:
            idle.timer = self._loop.call_later(self._keepalive_s, self._expired, fd, idle)

    def taken(self, ends: Ends) -> int | None:
        """The file descriptor of an idle connection that is in use again; None if it was not idle."""
        fd = self._ends.get(ends)
        if fd is not None:
            self._forget(fd)
        return fd

    def catch(self, origin: Origin) -> None:
        """A host has spoken unasked."""
        host = self._host(origin)
        host.trusted = False
        host.caught_at = self._loop.time()
        for fd in list(host.idle):
            self._shut_down(fd)

    def caught_since(self, origin: Origin, time: float) -> bool:
        caught_at = self._host(origin).caught_at
        return caught_at is not None and caught_at >= time

    def close(self) -> None:
        """Watches no longer. The connections are the pool's to close."""
        for fd in list(self._idle):
            self._forget(fd)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _host(self, origin: Origin) -> _Host:
        host = self._hosts.get(origin)
        if host is None:
            host = self._hosts[origin] = _Host(trusted=self._trial_s <= 0 < self._keepalive_s)
            if len(self._hosts) > _MOST_HOSTS:
                _, oldest = self._hosts.popitem(last=False)
                for fd in list(oldest.idle):
                    self._shut_down(fd)
        self._hosts.move_to_end(origin)
        return host

    def _is_caught(self, host: _Host) -> bool:
        return host.caught_at is not None and self._loop.time() < host.caught_at + _CAUGHT_S

    def _passed(self, fd: int, idle: _Idle) -> None:
        """A connection has been open and silent for as long as a trial lasts."""
        if not _is_same(fd, idle.inode):
            self._forget(fd)
            return
        host = self._host(idle.origin)
        host.trusted = not self._is_caught(host)
        idle.timer = self._loop.call_later(self._keepalive_s - self._trial_s, self._expired, fd, idle)

    def _expired(self, fd: int, idle: _Idle) -> None:
        self._shut_down(fd)

    def _spoken(self) -> None:
        """Idle connections have something to read: their end, as a rule."""
        for fd, event in self._epoll.poll(0):
            idle = self._idle.get(fd)
            if idle is None or not _is_same(fd, idle.inode):
                self._forget(fd)
                continue
            # A TLS connection says goodbye before its end.
            ends = event & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
            if unread(fd) and not (ends and idle.origin[0] == "https"):
                self.catch(idle.origin)
            self._shut_down(fd)

    def _shut_down(self, fd: int) -> None:
        """Ends a connection, so that the pool finds it dead. Only the pool may close its descriptor."""
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
        # It is gone from there if libcurl has closed it.
        with suppress(OSError):
            self._epoll.unregister(fd)


def unread(fd: int) -> int:
    """Bytes that a socket has received and nobody has read; 0 if there is no such socket."""
    return _count(fd, termios.FIONREAD)


def unacknowledged(fd: int) -> int:
    """Bytes that a socket has sent and the other side has not received."""
    return _count(fd, termios.TIOCOUTQ)


def received(fd: int) -> int:
    """Bytes that a TCP connection has received since it began; 0 if the system does not count them."""
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
