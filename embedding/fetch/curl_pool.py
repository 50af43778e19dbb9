"""libcurl's multi interface on an asyncio event loop: libcurl names the sockets it waits for, the loop watches them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import certifi
import pycurl

from embedding.fetch.curl_handle import new_easy
from embedding.fetch.exchange import Exchange, Shared
from embedding.fetch.keepalive import KeepAlive
from embedding.fetch.reply import FailureKind, Limits, TransportError

_NO_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Args:
    max_bytes: of one body.
    max_header_bytes: of all headers of an answer, those of interim answers and trailers included.
    keepalive_s: seconds for which an idle connection is kept; 0 = none is.
    trial_s: seconds for which a host's first connections must stay silent before any is used again; 0 = at once.
    max_idle: connections that are kept idle; the oldest gives way.
    dns_cache_s: seconds for which a resolved name is remembered.
    ca_file: PEM file of the trusted certificate authorities; "" = certifi's.
    """

    max_bytes: int = 64 * 2**20
    max_header_bytes: int = 256 * 2**10
    keepalive_s: float = 8.0
    trial_s: float = 1.0
    max_idle: int = 256
    dns_cache_s: float = 30
    ca_file: str = ""


class Pool:
    """libcurl's connections, on the running event loop."""

    def __init__(self, settings: TransportSettings, permits: Callable[[str], bool]) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        keepalive = KeepAlive(self._loop, settings.keepalive_s, settings.trial_s, settings.max_idle)
        self._multi = pycurl.CurlMulti()
        limits = Limits(settings.max_bytes, settings.max_header_bytes)
        self._shared = Shared(keepalive, permits, limits, {}, lambda: self._drive(pycurl.SOCKET_TIMEOUT, 0))
        self._running: dict[Any, Exchange] = {}
        self._idle: list[Exchange] = []
        self._watched: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._closed = False
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        # `KeepAlive` limits idle connections. With a limit here libcurl would close one whenever many are in use.
        self._multi.setopt(pycurl.M_MAXCONNECTS, _NO_LIMIT)

    def exchange(self) -> Exchange:
        """An exchange that carries no request."""
        if self._idle:
            return self._idle.pop()
        return Exchange(new_easy(self._settings.ca_file or certifi.where(), self._settings.keepalive_s), self._shared)

    def start(self, exchange: Exchange) -> None:
        self._running[exchange.easy] = exchange
        self._multi.add_handle(exchange.easy)

    def end(self, exchange: Exchange) -> None:
        """Ends an exchange; a transfer that is still running is aborted with its connection."""
        exchange.end()
        self._stop(exchange)
        if self._closed:
            exchange.easy.close()
        else:
            self._idle.append(exchange)

    async def close(self) -> None:
        self._closed = True
        for exchange in list(self._running.values()):
            exchange.fail(TransportError("the server is shutting down", FailureKind.CLOSED))
            self._stop(exchange)
        self._shared.keepalive.close()
        # Its callbacks are still called, for the sockets that it closes.
        self._multi.close()
        if self._timer is not None:
            self._timer.cancel()
        for exchange in self._idle:
            exchange.easy.close()
        self._idle.clear()

    def _stop(self, exchange: Exchange) -> None:
        if self._running.pop(exchange.easy, None) is not None:
            self._multi.remove_handle(exchange.easy)

    def _drive(self, fd: int, events: int) -> None:
        """Has libcurl handle the events of a socket, or its timers."""
        if self._closed:
            return
        self._multi.socket_action(fd, events)
        self._collect()

    def _collect(self) -> None:
        """Looks for transfers that are complete or have failed."""
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
        """libcurl says which of its sockets it waits for, and for what."""
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
