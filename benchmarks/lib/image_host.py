"""A real HTTP server on loopback that serves pictures and misbehaves on demand.

    with ImageHost({"cat.jpg": data}) as host:
        url = host.url("/ok/cat.jpg?delay=0.5")
        ...
        assert host.requests[0].headers["user-agent"] == "Marqobot/1.0"

| path | reply |
|---|---|
| `/ok/<name>` | the file, kept alive |
| `/chunked/<name>` | the file, in chunks and without a length |
| `/close/<name>` | the file, without a length, ended by closing the connection |
| `/once/<name>` | the file as if kept alive, then the connection is closed (stale in the client's pool) |
| `/status/<code>` | an empty reply with that status |
| `/redirect/<n>` | n redirects, then a small body |
| `/redirect-to?url=…&code=302` | a redirect to that URL; the Location header is sent as given |
| `/location-missing` | 302 without a Location |
| `/html` | an HTML page with status 200 |
| `/empty` | 200 without a body |
| `/cookie` | a small body and a Set-Cookie |
| `/drip` | a byte a second, for ever (`?every=` seconds) |
| `/endless` | chunks of 64 KiB for ever, as fast as they are taken |
| `/hang` | never anything |
| `/held/<name>` | the file, once `release` was called |
| `/cut` | a length of 1000, 10 bytes, then the end of the connection |
| `/cut-chunked` | one chunk, then the end of the connection |
| `/reset` | the connection is reset before any answer |
| `/lie-length` | a length of 10 TB and a small body |
| `/lie-short` | a length of 2 and a longer body |
| `/bad-chunk` | a chunk whose size is not a number |
| `/garbage` | bytes that are not HTTP |
| `/huge-headers` | a header of 1 MiB |
| `/many-headers` | 100,000 headers |
| `/loose/<kind>/<name>` | the file in an answer that is not quite HTTP, but that libcurl takes; kinds: `_loose` |
| `/second/<name>?after=…&then=…` | the file, and after so many seconds another, unasked; `&pieces=1`: in two pieces |
| `/double/<name>?then=…` | the file, 16 KiB with its head, and another, unasked, at once: two TLS records |
| `/shifted/<name>?wrong=…` | the file; not on a connection's first request: right behind a wrong one |
| `/gzip-bomb` | 100 KB of gzip that stand for 100 MB, with Content-Encoding |

Everywhere `?delay=<seconds>` waits before the reply, and `?pace=<bytes per second>` slows it down.
Unknown paths and names give 404.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

_TLS_RECORD = 2**14
_FOREVER_S = 3600.0
SMALL_BODY = b"0123456789"
_PIECE = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived. `headers` has lower-case names; repeated ones are joined with a comma."""

    path: str
    headers: dict[str, str]
    at: float
    """time.monotonic() when its head was complete."""
    in_flight: int
    """Requests then without a complete reply, this one included."""


class ImageHost:
    """Serves `files` from a thread of its own while the `with` block lasts.

    Args:
        files: name to content.
        tls: serve https with this context.
        address: the loopback address to listen on.
        record: keep every request in `requests`. Turn it off for long benchmarks.
        rate: bytes per second that all connections share; 0 = no limit. May be changed at any time.
        most_connections: beyond so many open ones new ones are reset; 0 = no limit.
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
        """Accepted since the start."""
        self.open_connections = 0
        self.peak = 0
        """The most requests that were in flight at a time."""
        self.in_flight = 0
        self.port = 0
        self.record = record
        self.rate = rate
        self.most_connections = most_connections
        self.refused = 0
        """Connections that were one too many."""
        self.free_at = 0.0
        """When the link is free for the next piece."""
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
        """The address of `path`, which starts with a slash; under another host name if one is given."""
        own = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self._tls else 'http'}://{host or own}:{self.port}{path}"

    def release(self) -> None:
        """Answers what is held, and what will be."""
        self._loop.call_soon_threadsafe(self._released.set)

    def wait_for(self, condition: str, value: int, timeout: float = 5.0) -> bool:
        """Waits until the attribute called `condition` is `value`; tells whether it came to that."""
        end = time.monotonic() + timeout
        while getattr(self, condition) != value:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def wait_for_requests(self, count: int) -> None:
        """Waits until so many have come."""
        while len(self.requests) < count:
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
    """One connection: requests one after the other. Replies that need no waiting cost no task."""

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
            host.requests.append(Request(target, _headers(fields), time.monotonic(), host.in_flight))
        if target.startswith("/ok/") and "?" not in target and not host.rate:
            self._finish(_reply_file(host.files, target[4:]))
            return
        self._task = host._loop.create_task(self._misbehave(target))
        self._task.add_done_callback(self._misbehaved)

    def _misbehaved(self, task: asyncio.Task[None]) -> None:
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

    async def _misbehave(self, target: str) -> None:
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
                self._finish(_reply_file(self._host.files, name))
            case "lie-length":
                self._write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000000\r\n\r\n" + SMALL_BODY)
                await asyncio.sleep(_FOREVER_S)
            case "reset":
                self._reset()
            case "second":
                self._finish(_reply_file(self._host.files, name))
                self._speak(_reply_file(self._host.files, query["then"]), float(query["after"]), "pieces" in query)
            case "double":
                first = _padded(_reply_file(self._host.files, name), _TLS_RECORD)
                self._finish(first + _reply_file(self._host.files, query["then"]))
                self._acknowledge_at_once()
            case "shifted":
                wrong = _reply_file(self._host.files, query["wrong"]) if self._answered > 1 else b""
                self._finish(wrong + _reply_file(self._host.files, name))
            case _:
                reply = _asked_for(self._host.files, what, name, query)
                reply = await self._paced(reply, float(query.get("pace", 0)))
                self._finish(reply, close=what in _CLOSING)

    def _acknowledge_at_once(self) -> None:
        """What is received next, whereas a request's acknowledgement goes with its answer otherwise."""
        assert self._transport is not None
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _speak(self, reply: bytes, after: float, pieces: bool) -> None:
        """Sends what nobody asked for; the connection goes on as if nothing were."""
        middle = 7 if pieces else len(reply)
        for delay, piece in ((after, reply[:middle]), (after + 0.01, reply[middle:])):
            if delay:
                self._host._loop.call_later(delay, self._write, piece)
            else:
                self._write(piece)

    async def _paced(self, reply: bytes, pace: float) -> bytes:
        """Writes as the link and the pace allow; returns what is left to be written."""
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
        self._write(_CHUNKED)
        chunk = _chunk(bytes(65536))
        while True:
            self._write(chunk)
            await self._writable.wait()
            await asyncio.sleep(0)

    def _reset(self) -> None:
        assert self._transport is not None
        self._host.in_flight -= 1
        self._transport.abort()


_CLOSING = frozenset(("once", "close", "cut", "cut-chunked", "garbage", "huge-headers", "many-headers"))
"""After these replies the connection is closed."""


def _asked_for(files: Mapping[str, bytes], what: str, name: str, query: Mapping[str, str]) -> bytes:
    """Replies that depend on the request."""
    match what:
        case "ok" | "once":
            return _reply_file(files, name)
        case "chunked":
            return _CHUNKED + _chunk(files[name]) + _chunk(b"")
        case "close":
            return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + files[name]
        case "loose":
            kind, _, name = name.partition("/")
            return _loose(kind, files[name])
        case "status":
            return _reply(b"", name)
        case "redirect":
            count = int(name)
            return _redirect(f"/redirect/{count - 1}") if count else _reply(SMALL_BODY)
        case "redirect-to":
            return _redirect(query["url"], query.get("code", "302"))
    return _odd(what)


def _loose(kind: str, body: bytes) -> bytes:
    """What is no proper HTTP, or at the edge of it, and is understood by browsers and libcurl all the same."""
    length = f"Content-Length: {len(body)}".encode()
    ok = b"HTTP/1.1 200 OK\r\n"
    match kind:
        case "excess":
            return ok + length + b"\r\n\r\n" + body + b"\r\nmore"
        case "chunked-length":
            return ok + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunk(body) + _chunk(b"")
        case "equal-lengths":
            return ok + length + b"\r\n" + length + b"\r\n\r\n" + body
        case "blank-colon":
            return ok + b"X-A : a\r\nX-B\t: b\r\n" + length + b"\r\n\r\n" + body
        case "200-headers":
            return ok + b"".join(b"X-%d: a\r\n" % i for i in range(200)) + length + b"\r\n\r\n" + body
        case "long-header":
            return ok + b"X-Long: " + b"a" * 60_000 + b"\r\n" + length + b"\r\n\r\n" + body
        case "interim":
            return b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _reply(body)
        case "trailers":
            return _CHUNKED + _chunk(body) + b"0\r\nX-After: a\r\nContent-Length: 1\r\n\r\n"
        case "line-feeds":
            return ok.replace(b"\r", b"") + length + b"\n\n" + body
        case "no-reason":
            return b"HTTP/1.1 200\r\n" + length + b"\r\n\r\n" + body
    return _reply(b"", "404")


def _odd(what: str) -> bytes:
    """Replies that are always the same; 404 for what is not known."""
    match what:
        case "location-missing":
            return _reply(b"", "302")
        case "html":
            return _reply(b"<!doctype html><title>not a picture</title>", extra="Content-Type: text/html")
        case "empty":
            return _reply(b"")
        case "cookie":
            return _reply(SMALL_BODY, extra="Set-Cookie: session=1; Path=/")
        case "cut":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + SMALL_BODY
        case "cut-chunked":
            return _CHUNKED + _chunk(SMALL_BODY)
        case "lie-short":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + SMALL_BODY
        case "bad-chunk":
            return _CHUNKED + b"zz\r\nab\r\n"
        case "garbage":
            return b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
        case "huge-headers":
            return _reply(SMALL_BODY, extra="X-Huge: " + "a" * 2**20)
        case "many-headers":
            return _reply(SMALL_BODY, extra=_MANY_HEADERS)
        case "gzip-bomb":
            return _reply(_gzip_bomb(), extra="Content-Encoding: gzip")
    return _reply(b"", "404")


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


_MANY_HEADERS = "\r\n".join(f"X-{i}: a" for i in range(100_000))


def _headers(fields: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        name = name.lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    return headers


def _reply(body: bytes, status: str = "200", extra: str = "") -> bytes:
    fields = [f"HTTP/1.1 {status} Reason", f"Content-Length: {len(body)}", extra]
    return "\r\n".join(filter(None, fields)).encode("utf-8") + b"\r\n\r\n" + body


def _padded(reply: bytes, nbytes: int) -> bytes:
    """The reply, with a header that makes it as long as that."""
    status, _, rest = reply.partition(b"\r\n")
    start = status + b"\r\nX-Padding: "
    return start + bytes(nbytes - len(start) - 2 - len(rest)).replace(b"\0", b"x") + b"\r\n" + rest


def _reply_file(files: Mapping[str, bytes], name: str) -> bytes:
    body = files.get(name)
    return _reply(b"", "404") if body is None else _reply(body)


def _redirect(location: str, status: str = "302") -> bytes:
    return _reply(b"", status, f"Location: {location}")


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(10 * 2**20)) * 10
