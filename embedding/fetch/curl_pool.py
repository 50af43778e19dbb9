"""libcurl's multi interface on an asyncio event loop, which watches the sockets that libcurl waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import certifi
import pycurl

from embedding.fetch.curl_handle import Handle
from embedding.fetch.exchange import Exchange, HttpRequest, Shared
from embedding.fetch.keepalive import KeepAlive
from embedding.fetch.reply import FailureKind, Limits, Reply, TransportError

_NO_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Limits of one transport.

    Args:
        max_bytes: maximum size of one body.
        max_header_bytes: maximum size of all headers of an answer; those of interim answers and trailers count.
        keepalive_s: seconds for which an idle connection is kept; 0 = none is kept.
        trial_s: seconds for which the first idle connections of a host must receive nothing before connections of that
            host are reused; 0 = they are reused at once.
        max_idle: maximum number of idle connections; the one that was idle for longest is closed first.
        dns_cache_s: seconds for which a resolved name is cached; 0 = only concurrent lookups share an answer.
        ca_file: PEM file of the trusted certificate authorities; "" = those of certifi.
    """

    max_bytes: int = 64 * 2**20
    max_header_bytes: int = 256 * 2**10
    keepalive_s: float = 8.0
    trial_s: float = 1.0
    max_idle: int = 256
    dns_cache_s: float = 30
    ca_file: str = ""


class Pool:
    """A connection pool of libcurl and the exchanges that run on it. It belongs to the running event loop.

    Args:
        settings: limits.
        permits: whether an IP address, as text, may be connected to.
    """

    def __init__(self, settings: TransportSettings, permits: Callable[[str], bool]) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        keepalive = KeepAlive(self._loop, settings.keepalive_s, settings.trial_s, settings.max_idle)
        self._multi = pycurl.CurlMulti()
        limits = Limits(settings.max_bytes, settings.max_header_bytes)
        self._shared = Shared(keepalive, permits, limits, {}, lambda: self._drive(pycurl.SOCKET_TIMEOUT, 0))
        self._running: dict[Any, Exchange] = {}
        self._idle: list[Handle] = []
        self._watched: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._closed = False
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        # `KeepAlive` limits idle connections. A limit of libcurl would also count those in use, and so close idle ones
        # whenever many are in use.
        self._multi.setopt(pycurl.M_MAXCONNECTS, _NO_LIMIT)

    def exchange(self, request: HttpRequest) -> Exchange:
        """A new exchange, which the caller starts and ends."""
        handle = self._idle.pop() if self._idle else self._new_handle()
        return Exchange(handle, self._shared, request)

    def start(self, exchange: Exchange) -> asyncio.Future[Reply]:
        """Sends the request of an exchange. Returns its answer, or its failure."""
        answer = exchange.begin()
        easy = exchange.handle.easy
        self._running[easy] = exchange
        self._multi.add_handle(easy)
        return answer

    def end(self, exchange: Exchange) -> None:
        """Ends an exchange; a transfer that is still running is aborted with its connection."""
        exchange.end()
        self._stop(exchange)
        handle = exchange.handle
        handle.exchange = None
        if self._closed:
            handle.easy.close()
        else:
            self._idle.append(handle)

    def _new_handle(self) -> Handle:
        return Handle(self._settings.ca_file or certifi.where(), self._settings.keepalive_s)

    async def close(self) -> None:
        """Ends all exchanges and closes all connections."""
        self._closed = True
        for exchange in list(self._running.values()):
            exchange.fail(TransportError("the server is shutting down", FailureKind.CLOSED))
            self._stop(exchange)
        self._shared.keepalive.close()
        # Its callbacks are still called, for the sockets that it closes.
        self._multi.close()
        if self._timer is not None:
            self._timer.cancel()
        for handle in self._idle:
            handle.easy.close()
        self._idle.clear()

    def _stop(self, exchange: Exchange) -> None:
        easy = exchange.handle.easy
        if self._running.pop(easy, None) is not None:
            self._multi.remove_handle(easy)

    def _drive(self, fd: int, events: int) -> None:
        """Lets libcurl process the events of a socket, or its timers."""
        if self._closed:
            return
        self._multi.socket_action(fd, events)
        self._collect()

    def _collect(self) -> None:
        """Processes the transfers that are complete or have failed."""
        left = 1
        while left and not self._closed:
            left, done, failed = self._multi.info_read()
            for easy in done:
                self._done(easy, 0)
            for easy, number, _ in failed:
                self._done(easy, number)

    def _done(self, easy: Any, number: int) -> None:
        exchange = self._running.get(easy)
        if exchange is not None:
            exchange.done(number)

    def _watch(self, what: int, fd: int, multi: Any, data: object) -> None:
        """Called by libcurl: from now on it waits for these events (`what`) of a socket."""
        old = self._watched.pop(fd, 0)
        new = 0 if what == pycurl.POLL_REMOVE else what
        if new:
            self._watched[fd] = new
        if new & pycurl.POLL_IN and not old & pycurl.POLL_IN:
            self._loop.add_reader(fd, self._drive, fd, pycurl.CSELECT_IN)
        elif old & pycurl.POLL_IN and not new & pycurl.POLL_IN:
            self._loop.remove_reader(fd)
        if new & pycurl.POLL_OUT and not old & pycurl.POLL_OUT:
            self._loop.add_writer(fd, self._drive, fd, pycurl.CSELECT_OUT)
        elif old & pycurl.POLL_OUT and not new & pycurl.POLL_OUT:
            self._loop.remove_writer(fd)

    def _set_timer(self, milliseconds: int) -> None:
        """Called by libcurl: its timers are to be processed after this time; -1 = it has none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds == 0:
            self._timer = self._loop.call_soon(self._timed)
        elif milliseconds > 0:
            self._timer = self._loop.call_later(milliseconds / 1000, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._drive(pycurl.SOCKET_TIMEOUT, 0)
