"""One HTTP request and its answer, carried by a handle of libcurl."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakMethod

import pycurl
from multidict import CIMultiDict

from embedding.fetch.curl_handle import Handle, configure
from embedding.fetch.guard import refusal
from embedding.fetch.keepalive import Ends, KeepAlive, received, unacknowledged, unread
from embedding.fetch.reply import FailureKind, Head, Limits, Observer, Reply, Sink, TransportError
from embedding.fetch.url import Target

# A body that is of no use, such as that of a 404, is read to its end if it has at most this many bytes and ends within
# this many seconds. Then its connection can be used again.
_SHORT_BYTES = 8192
_SHORT_S = 0.1
_NAME = frozenset((pycurl.E_COULDNT_RESOLVE_HOST,))
_CONNECTION = frozenset((pycurl.E_COULDNT_CONNECT, pycurl.E_OPERATION_TIMEDOUT))
_TLS = frozenset(
    (
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_SSL_CIPHER,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_ISSUER_ERROR,
        pycurl.E_SSL_INVALIDCERTSTATUS,
    )
)


class AnswerRejected(Exception):
    """A reused connection gave an answer that may not belong to this request; the request is to be sent again."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A GET request.

    Args:
        target: what is requested.
        addresses: IP addresses of its host; empty if the host is written as an address.
        headers: headers of the request.
        observer: told of the progress.
        sink: takes the body; None = the reply holds it.
        fresh: whether it needs a new connection.
    """

    target: Target
    addresses: list[str]
    headers: CIMultiDict[str]
    observer: Observer
    sink: Sink | None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Shared:
    """What the exchanges of a pool share.

    Args:
        keepalive: told of each connection.
        permits: whether an IP address may be connected to.
        limits: size limits of each answer.
        users: the exchange that last used each connection.
        drive: processes libcurl's pending events.
    """

    keepalive: KeepAlive
    permits: Callable[[str], bool]
    limits: Limits
    users: dict[Ends, Exchange]
    drive: Callable[[], None]


class Exchange:
    """One request and its answer. It belongs to the running event loop.

    Args:
        handle: the handle of libcurl that carries it.
        shared: what it shares with other exchanges.
        request: what is sent.
    """

    def __init__(self, handle: Handle, shared: Shared, request: HttpRequest) -> None:
        self.handle = handle
        handle.exchange = self
        self._shared = shared
        self._keepalive = shared.keepalive
        self._request = request
        self._observer = request.observer
        self._sink = request.sink
        self._origin = request.target.origin
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Reply] = self._loop.create_future()
        self._started = self._loop.time()
        self._keep = False
        """Whether the connection may be left open after the answer."""
        self._error: BaseException | None = None
        """What a callback has raised; see "Callbacks of libcurl"."""
        self._errno = 0
        """Of the last socket that could not be opened."""
        self._opened = self._used = False
        """Whether a socket was opened; whether the connection had been used before."""
        self._ends: Ends | None = None
        self._fd: int | None = None
        """Descriptor of a connection that was idle before."""
        self._received_before = 0
        """Bytes that had been received on it before the request; only for https."""
        self._head = Head()
        self._body: list[bytes] = []
        self._nbytes = 0
        """Size of the body so far."""
        self._paused = False
        self._reply: Reply | None = None
        """The answer, if its body is of no use: known when its head is complete."""
        self._drain: asyncio.TimerHandle | None = None
        """Limits the time for which such a body is read."""

    def begin(self) -> asyncio.Future[Reply]:
        """Sets the handle up; the caller starts it. Returns the answer to come."""
        request, easy = self._request, self.handle.easy
        self._keep = self._keepalive.may_keep(self._origin)
        if self._keep:
            self._keepalive.use(self._origin, 1)
        configure(easy, request.target, request.addresses, request.headers)
        easy.setopt(pycurl.FRESH_CONNECT, request.fresh or not self._keepalive.may_reuse(self._origin))
        easy.setopt(pycurl.FORBID_REUSE, not self._keep)
        # Weak, since a cycle with an observer that keeps `resume` would keep the body until Python's next collection.
        resume = WeakMethod(self._resume)
        self._observer.began(lambda: (resume() or _do_nothing)())
        return self._future

    def end(self) -> None:
        """The exchange has ended, in whatever way."""
        if self._keep:
            self._keepalive.use(self._origin, -1)
            self._keep = False
        if self._ends is not None and self._shared.users.get(self._ends) is self:
            del self._shared.users[self._ends]
        if self._drain is not None:
            self._drain.cancel()
        if not self._future.cancel() and not self._future.cancelled():
            self._future.exception()  # marks it as seen: its caller may have been cancelled
        # An error's traceback refers to this object: without the body it may wait for Python's next collection.
        self._body = []

    def fail(self, error: BaseException) -> None:
        """Ends the exchange with an error, unless it has ended already."""
        if not self._future.done():
            self._future.set_exception(error)

    def done(self, number: int) -> None:
        """libcurl has finished the transfer, with an error number, or 0."""
        if self._future.done():
            return
        if self._error is not None:
            self.fail(self._error)
            return
        if number and self._reply is None:
            self.fail(self._failure(number))
            return
        if not number and not self._release():
            self.fail(AnswerRejected())
            return
        self._answer()

    def _answer(self) -> None:
        if not self._future.done():
            self._future.set_result(self._reply or Reply(self._head.status, None, b"".join(self._body)))
        self._body = []

    def _release(self) -> bool:
        """After a complete answer: has the idle connection watched. Returns whether the answer can be trusted."""
        if self._keep and self._ends is not None:
            self._leave(self._ends, self.handle.easy.getinfo(pycurl.ACTIVESOCKET))
        return not (self._used and self._keepalive.caught_since(self._origin, self._started))

    def _leave(self, ends: Ends, fd: int) -> None:
        following = self._shared.users.get(ends)
        if following is not self and following is not None:
            # libcurl has already handed this connection to the next exchange, so that one takes over the descriptor.
            following.take_over(fd)
        elif fd < 0 and self._head.has_end and not self._head.closes:
            self._keepalive.catch(self._origin)  # libcurl closes a connection when it has read more than an answer
        elif fd >= 0:
            self._keepalive.watch(self._origin, ends, fd)
            if unread(fd):
                self._keepalive.catch(self._origin)

    def take_over(self, fd: int) -> None:
        """The connection of this exchange has come from another one that has just ended; `fd` is its descriptor."""
        self._fd = fd

    def _failure(self, number: int) -> Exception:
        """The error for an error number of libcurl."""
        host, system = self._origin[1], self.handle.easy.getinfo(pycurl.OS_ERRNO) or self._errno
        answered = self._head.nbytes > 0
        if answered and self._used and not self._nbytes:
            return AnswerRejected()
        if number in _NAME:
            return TransportError(f"could not resolve the host `{host}`", FailureKind.NAME)
        if number in _CONNECTION and not answered:
            return TransportError(os.strerror(system) if system else "the connection failed", FailureKind.CONNECTION)
        if number == pycurl.E_PEER_FAILED_VERIFICATION:
            return TransportError(f"the certificate of `{host}` is not trusted", FailureKind.TLS)
        if number in _TLS and not answered:
            return TransportError(f"no TLS connection to `{host}`", FailureKind.TLS)
        if not answered and number in (pycurl.E_GOT_NOTHING, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR):
            return TransportError("the server closed the connection without an answer", FailureKind.SILENCE)
        if number == pycurl.E_PARTIAL_FILE or system:
            return TransportError("the transfer was cut short or malformed", FailureKind.ANSWER)
        return TransportError("the answer is not valid HTTP", FailureKind.ANSWER)

    # --- Callbacks of libcurl: pycurl prints their exceptions and continues, so `done` raises what they have stored ---

    def open_socket(self, purpose: int, address: Any) -> socket.socket | int:
        try:
            # The address of the socket itself, in case the checks before it are ever bypassed.
            if not self._shared.permits(str(address.addr[0])):
                raise refusal(self._origin[1])
            self._opened = True
            return socket.socket(address.family, address.socktype, address.protocol)
        except OSError as error:  # no socket for this address family; libcurl tries the next address
            self._errno = error.errno or 0
        except BaseException as error:
            self._error = error
        return int(pycurl.SOCKET_BAD)

    def connected(self, remote: str, local: str, remote_port: int, local_port: int) -> int:
        try:
            if not self._shared.permits(remote):
                raise refusal(self._origin[1])
            self._ends = remote, local, remote_port, local_port
            self._used = not self._opened
            self._fd = self._keepalive.taken(self._ends)
            if self._fd is not None and self._origin[0] == "https":
                self._received_before = received(self._fd)
            self._shared.users[self._ends] = self
            self._observer.connected()
            return int(pycurl.PREREQFUNC_OK)
        except BaseException as error:
            self._error = error
            return int(pycurl.PREREQFUNC_ABORT)

    def header(self, line: bytes) -> int | None:
        try:
            if not self._head.nbytes:
                self._first_line()
            self._head.add(line)
            if self._head.nbytes > self._shared.limits.headers:
                limit = self._shared.limits.headers
                raise TransportError(
                    f"the answer is not valid HTTP: more than {limit} bytes of headers", FailureKind.ANSWER
                )
            if self._head.complete and self._reply is None and not line.strip():
                return self._decide()
            return None
        except BaseException as error:
            self._error = error
            return 0

    def _first_line(self) -> None:
        if self._used and self._fd is not None and self._is_early(self._fd):
            self._keepalive.catch(self._origin)
            raise AnswerRejected
        self._observer.answering()

    def _is_early(self, fd: int) -> bool:
        """Whether the answer was there before the host had the request."""
        return bool(unacknowledged(fd)) or 0 < self._received_before == received(fd)

    def _decide(self) -> int | None:
        """At the end of the head: whether to read on."""
        head = self._head
        if head.status == 200 if self._sink is None else self._sink.head(head):
            if head.length is not None and head.length > self._shared.limits.body:
                raise TransportError(
                    f"it has {head.length} bytes, and {self._shared.limits.body} are allowed", FailureKind.TOO_LARGE
                )
            self._observer.length(head.length)
            return None
        self._reply = Reply(head.status, head.location, b"")
        if not head.has_end or (head.length or 0) > _SHORT_BYTES:
            return 0
        self._drain = self._loop.call_later(_SHORT_S, self._answer)
        return None

    def write(self, data: bytes) -> int | None:
        try:
            self._nbytes += len(data)
            if self._reply is not None:
                return 0 if self._nbytes > _SHORT_BYTES else None
            if self._nbytes > self._shared.limits.body:
                raise TransportError(
                    f"it has more than the {self._shared.limits.body} bytes that are allowed", FailureKind.TOO_LARGE
                )
            if not self._observer.wants(len(data)):
                self._nbytes -= len(data)
                self._paused = True
                return int(pycurl.WRITEFUNC_PAUSE)
            if self._sink is None:
                self._body.append(data)
            else:
                self._sink.write(data)
            return None
        except BaseException as error:
            self._error = error
            return 0

    def _resume(self) -> None:
        # Not at once: the caller may be a callback of libcurl, in which libcurl must not be called.
        self._loop.call_soon(self._unpause)

    def _unpause(self) -> None:
        if not self._future.done() and self._paused:
            self._paused = False
            self.handle.easy.pause(pycurl.PAUSE_CONT)
            self._shared.drive()


def _do_nothing() -> None:
    pass
