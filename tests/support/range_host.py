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
from types import TracebackType

from benchmarks.lib.loopback import Handler, Loopback

OLD = formatdate(1_600_000_000, usegmt=True)


@dataclass
class RangeHost(Loopback):
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

    def __post_init__(self) -> None:
        self.over = threading.Event()

    def handler(self) -> type[Handler]:
        return _Handler

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.over.set()
        super().__exit__(*error)

    def url(self, path: str = "/model.pt") -> str:
        """The address of the file."""
        return f"{self.address}{path}"

    def ranges(self) -> list[str | None]:
        """What each request asked for."""
        return [request.get("range") for request in self.requests]


class _Handler(Handler):
    @property
    def host(self) -> RangeHost:
        host: RangeHost = self.server.host
        return host

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.host.requests.append(headers)
        whole, lie = self.host.content, self.host.lie
        start = int(headers["range"].removeprefix("bytes=").rstrip("-")) if "range" in headers else None
        same = headers.get("if-range") in (self.host.etag or self.host.modified, None)
        if start is None or not same or lie == "ignore":
            self._send(200, whole, {})
        elif lie.isdigit():
            self._send(int(lie), b"", {})
        else:
            self._send(206, *_part(whole, start, lie))

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        # Before the client can see any of it, and so before a test can look.
        limit = self.host.breaks.pop(0) if self.host.breaks else len(body)
        self.host.sent.append(min(limit, len(body)))
        self.send_response(status)
        own = {"ETag": self.host.etag, "Last-Modified": self.host.modified} | headers
        for name, value in own.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send_body(body, limit)

    def _send_body(self, body: bytes, limit: int) -> None:
        self.wfile.write(body[:limit])
        self.wfile.flush()
        if limit < len(body):
            self._wait_for_the_end()
            self.close_connection = True

    def _wait_for_the_end(self) -> None:
        while (self.host.stall or not self.host.hold()) and not self.host.over.wait(0.01):
            pass


def _part(whole: bytes, start: int, lie: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a part, or what a liar makes of them."""
    first = start + (lie == "start")
    total = len(whole) + (lie == "total")
    unit = "chunks" if lie == "unit" else "bytes"
    headers = {"Content-Range": f"{unit} {first}-{len(whole) - 1}/{total}"}
    body = whole[start:]
    match lie:
        case "missing":
            headers = {}
        case "length":
            body = body[:-10]
        case "etag":
            headers["ETag"] = '"another"'
        case "body":
            body = body[::-1]
    return body, headers
