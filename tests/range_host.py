"""A real HTTP server on loopback with one large file: it serves ranges, breaks off, and lies about them on demand.

    with RangeHost(content) as host:
        host.breaks = [100_000]             # the first answer ends after so many bytes
        ...
        assert host.requests[1]["range"] == "bytes=100000-"

`lie` is what it does with a range: "" is as RFC 9110 wants it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

OLD = formatdate(1_600_000_000, usegmt=True)


@dataclass
class RangeHost:
    """Serves `content` under every path, from threads of its own, while the `with` block lasts.

    Args:
        content: the file.
        etag: its ETag, with quotes; "" is none.
        modified: its Last-Modified; "" is none.
        breaks: for each coming answer, after how many bytes of its body the connection ends; then all are whole.
        stall: instead of ending the connection it is kept open and silent.
        hold: a connection that is to end does so when this says yes.
        lie: "", "ignore" (always the whole file), "start", "total", "unit", "length", "etag", "missing" (a wrong or no
            Content-Range), "body" (other bytes than it says), "416", or an error's status.
    """

    content: bytes
    etag: str = '"one"'
    modified: str = ""
    breaks: list[int] = field(default_factory=list)
    stall: bool = False
    hold: Callable[[], bool] = lambda: True
    lie: str = ""
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    """Bytes of each answer's body that were to be sent."""

    def __enter__(self) -> RangeHost:
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, path: str = "/model.pt") -> str:
        """The address of the file."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def ranges(self) -> list[str | None]:
        """What each request asked for."""
        return [request.get("range") for request in self.requests]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or give up are what this host is for."""


def _handler(host: RangeHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            host.requests.append(headers)
            whole = host.content
            start = int(headers["range"].removeprefix("bytes=").rstrip("-")) if "range" in headers else None
            same = headers.get("if-range") in (host.etag or host.modified, None)
            if start is None or not same or host.lie == "ignore":
                self._send(200, whole, {})
            elif host.lie.isdigit():
                self._send(int(host.lie), b"", {})
            else:
                self._send_range(whole, start)

        def _send_range(self, whole: bytes, start: int) -> None:
            first = start + (host.lie == "start")
            total = len(whole) + (host.lie == "total")
            unit = "chunks" if host.lie == "unit" else "bytes"
            headers = {"Content-Range": f"{unit} {first}-{len(whole) - 1}/{total}"}
            body = whole[start:]
            match host.lie:
                case "missing":
                    headers = {}
                case "length":
                    body = body[:-10]
                case "etag":
                    headers["ETag"] = '"another"'
                case "body":
                    body = body[::-1]
            self._send(206, body, headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            own = {"ETag": host.etag, "Last-Modified": host.modified} | headers
            for name, value in own.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            limit = host.breaks.pop(0) if host.breaks else len(body)
            host.sent.append(min(limit, len(body)))
            self.wfile.write(body[:limit])
            self.wfile.flush()
            if limit < len(body):
                while (host.stall or not host.hold()) and not host._over.wait(0.01):
                    pass
                self.close_connection = True

    return Handler
