"""An HTTP server on loopback that serves pictures and misbehaves on demand.

    with ImageHost({"cat.jpg": data}) as host:
        url = host.url("/ok/cat.jpg?delay=0.5")
        ...
        assert host.requests[0].headers["user-agent"] == "Marqobot/1.0"

| path | reply |
|---|---|
| `/ok/<name>` | the file, kept alive |
| `/chunked/<name>` | the file, in chunks and without a length |
| `/close/<name>` | the file, without a length, ended by closing the connection |
| `/once/<name>` | the file as if kept alive, then the end of the connection: it is stale in the client's pool |
| `/status/<code>` | an empty reply with that status |
| `/redirect/<n>` | n redirects, then a small body |
| `/redirect-to?url=…&code=302` | a redirect to that URL; the Location header is sent as given |
| `/location-missing` | 302 without a Location |
| `/html` | an HTML page with status 200 |
| `/empty` | 200 without a body |
| `/cookie` | a small body and a Set-Cookie |
| `/drip` | one byte per second without an end (`?every=` seconds) |
| `/endless` | chunks of 64 KiB without an end, as fast as the client reads |
| `/hang` | no answer at all |
| `/held/<name>` | the file, after `release` was called |
| `/cut` | a length of 1000, 10 bytes, then the end of the connection |
| `/cut-chunked` | one chunk, then the end of the connection |
| `/reset` | the connection is reset before any answer |
| `/lie-length` | a length of 10 TB and a small body |
| `/lie-short` | a length of 2 and a longer body |
| `/bad-chunk` | a chunk whose size is not a number |
| `/garbage` | bytes that are not HTTP |
| `/huge-headers` | a header of 1 MiB |
| `/many-headers` | 100,000 headers |
| `/loose/<kind>/<name>` | the file in a reply that is not strictly HTTP but that libcurl takes; kinds: `_loose` |
| `/second/<name>?after=…&then=…` | the file, and a second reply after so many seconds; `&pieces=1`: in two pieces |
| `/double/<name>?then=…` | the file, padded to 16 KiB, and at once a second reply: two TLS records |
| `/shifted/<name>?wrong=…` | the file, but from a connection's second request on right behind a wrong file |
| `/gzip-bomb` | 100 KB of gzip that expand to 100 MB, with Content-Encoding |

With any path `?delay=<seconds>` waits before the reply, and `?pace=<bytes per second>` limits its speed.
Unknown paths and names are answered with 404. The replies are in `image_replies.py`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

from benchmarks.lib import image_replies as replies

SMALL_BODY = replies.SMALL_BODY
_TLS_RECORD = 2**14
"""Bytes."""
_FOREVER_S = 3600.0
_PIECE = 4096
"""Bytes that a limited reply writes at a time."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived.

    Args:
        path: with its query.
        headers: lower-case names; repeated ones are joined with a comma.
        at: time.monotonic() when its head was complete.
        in_flight: requests at that moment without a complete reply, this one included.
    """

    path: str
    headers: dict[str, str]
    at: float
    in_flight: int


class ImageHost:
    """Serves `files` from a thread of its own while the `with` block lasts.

    Args:
        files: bytes by name.
        tls: serve https with this context.
        address: the loopback address to listen on.
        record: whether every request is kept in `requests`, which long benchmarks should avoid.
        rate: bytes per second that all connections share; 0 = no limit. May be changed at any time.
        most_connections: with so many open connections, new ones are reset; 0 = no limit.
    """

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        tls: ssl.SSLContext | None = None,
        address: str = "127.0.0.1",
        record: bool = True,
        rate: float = 0,
        most_connections: int = 0,
    ) -> None:
        self.files = dict(files or {})
        self.requests: list[Request] = []
        self.connections = 0
        """How many were accepted since the start."""
        self.open_connections = 0
        self.peak = 0
        """The largest number of requests that were in flight at a time."""
        self.in_flight = 0
        self.port = 0
        self.record = record
        self.rate = rate
        self.most_connections = most_connections
        self.refused = 0
        """Connections beyond `most_connections`."""
        self.free_at = 0.0
        """When the shared rate allows the next piece, by time.monotonic()."""
        self.address = address
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="image-host", daemon=True)
        self._ready = threading.Event()
        self._released = asyncio.Event()
        self._transports: set[asyncio.Transport] = set()

    def __enter__(self) -> ImageHost:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, path: str, host: str = "") -> str:
        """The URL of `path`, which starts with a slash; with another host name if one is given."""
        own = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self._tls else 'http'}://{host or own}:{self.port}{path}"

    def release(self) -> None:
        """Answers the requests for `/held/…`, those that wait and those to come."""
        self._loop.call_soon_threadsafe(self._released.set)

    def wait_for(self, condition: str, value: int, timeout: float = 5.0) -> bool:
        """Waits until the attribute called `condition` is `value`; returns whether that happened in time."""
        end = time.monotonic() + timeout
        while getattr(self, condition) != value:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def wait_for_requests(self, count: int, timeout: float = 30.0) -> None:
        """Waits until so many requests have come.

        Raises:
            TimeoutError: fewer came within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while len(self.requests) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"only {len(self.requests)} of {count} requests came within {timeout:g} s")
            time.sleep(0.005)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _Connection(self), self.address, 0, ssl=self._tls, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for transport in list(self._transports):
            transport.abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


class _Connection(asyncio.Protocol):
    """One connection, whose requests are answered one after the other. Only replies that wait need a task."""

    def __init__(self, host: ImageHost) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._answered = 0
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._host.connections += 1
        self._host.open_connections += 1
        self._host._transports.add(transport)
        if 0 < self._host.most_connections < self._host.open_connections:
            self._host.refused += 1
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._host.open_connections -= 1
        self._host._transports.discard(self._transport)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer and not self._buffer[:1].isalpha():  # TLS, say
            assert self._transport is not None
            self._transport.abort()
        while self._task is None and b"\r\n\r\n" in self._buffer:
            head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        host = self._host
        line, *fields = head.decode("latin-1").split("\r\n")
        target = line.split(" ")[1]
        self._answered += 1
        host.in_flight += 1
        host.peak = max(host.peak, host.in_flight)
        if host.record:
            host.requests.append(Request(target, replies.parsed_headers(fields), time.monotonic(), host.in_flight))
        if target.startswith("/ok/") and "?" not in target and not host.rate:
            self._finish(replies.file_reply(host.files, target[4:]))
            return
        self._task = host._loop.create_task(self._reply(target))
        self._task.add_done_callback(self._replied)

    def _replied(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            self._host.in_flight -= 1
            return
        error = task.exception()
        if error is not None:
            self._host.in_flight -= 1
            raise error
        if self._transport is not None and not self._transport.is_closing():
            self.data_received(b"")

    def _finish(self, reply: bytes, close: bool = False) -> None:
        """The last bytes of a reply."""
        assert self._transport is not None
        self._transport.write(reply)
        self._host.in_flight -= 1
        if close:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def _reply(self, target: str) -> None:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        await asyncio.sleep(float(query.get("delay", 0)))
        _, what, *rest = parts.path.split("/", 2)
        name = rest[0] if rest else ""
        match what:
            case "drip":
                await self._drip(float(query.get("every", 1)))
            case "endless":
                await self._flood()
            case "hang":
                await asyncio.sleep(_FOREVER_S)
            case "held":
                await self._host._released.wait()
                self._finish(replies.file_reply(self._host.files, name))
            case "lie-length":
                self._write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000000\r\n\r\n" + SMALL_BODY)
                await asyncio.sleep(_FOREVER_S)
            case "reset":
                self._reset()
            case "second":
                self._finish(replies.file_reply(self._host.files, name))
                self._speak(
                    replies.file_reply(self._host.files, query["then"]), float(query["after"]), "pieces" in query
                )
            case "double":
                first = replies.padded(replies.file_reply(self._host.files, name), _TLS_RECORD)
                self._finish(first + replies.file_reply(self._host.files, query["then"]))
                self._acknowledge_at_once()
            case "shifted":
                wrong = replies.file_reply(self._host.files, query["wrong"]) if self._answered > 1 else b""
                self._finish(wrong + replies.file_reply(self._host.files, name))
            case _:
                reply = replies.reply_to(self._host.files, what, name, query)
                reply = await self._paced(reply, float(query.get("pace", 0)))
                self._finish(reply, close=what in replies.CLOSING)

    def _acknowledge_at_once(self) -> None:
        """Has the kernel acknowledge at once what arrives next. Otherwise the acknowledgement waits for a reply."""
        assert self._transport is not None
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _speak(self, reply: bytes, after: float, pieces: bool) -> None:
        """Sends a reply to no request, after so many seconds. The connection stays open."""
        middle = 7 if pieces else len(reply)
        for delay, piece in ((after, reply[:middle]), (after + 0.01, reply[middle:])):
            if delay:
                self._host._loop.call_later(delay, self._write, piece)
            else:
                self._write(piece)

    async def _paced(self, reply: bytes, pace: float) -> bytes:
        """Writes a reply as slowly as the rate and the pace demand; returns what is left to be written."""
        host = self._host
        if not host.rate and not pace:
            return reply
        for start in range(0, len(reply), _PIECE):
            piece = reply[start : start + _PIECE]
            now = time.monotonic()
            if host.rate:
                host.free_at = max(host.free_at, now) + len(piece) / host.rate
            wait = max(host.free_at - now if host.rate else 0.0, len(piece) / pace if pace else 0.0)
            await asyncio.sleep(wait)
            self._write(piece)
        return b""

    async def _drip(self, every: float) -> None:
        self._write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            self._write(b"x")
            await asyncio.sleep(every)

    async def _flood(self) -> None:
        self._write(replies.CHUNKED)
        piece = replies.chunk(bytes(65536))
        while True:
            self._write(piece)
            await self._writable.wait()
            await asyncio.sleep(0)

    def _reset(self) -> None:
        assert self._transport is not None
        self._host.in_flight -= 1
        self._transport.abort()
