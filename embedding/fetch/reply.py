"""The result of one HTTP request, a reply or a failure; and the interfaces that are told of its progress."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol

_STATUS_LINE = re.compile(rb"HTTP/1\.(\d) (\d{3})")
_LENGTH = re.compile(rb"\d{1,18}")


class FailureKind(Enum):
    """Kind of transport failure."""

    NAME = "the name has no address"
    CONNECTION = "no connection could be made; another try may succeed"
    TLS = "no TLS connection could be made"
    SILENCE = "the connection ended before an answer began"
    ANSWER = "the answer is cut short or malformed"
    TOO_LARGE = "the answer has more bytes than are allowed"
    CLOSED = "the transport is closed"


class TransportError(Exception):
    """A request failed. The text is the reason, as a client may read it; it names no IP address.

    Args:
        reason: the text.
        kind: what failed; with NAME, CONNECTION, TLS and SILENCE no byte of an answer has arrived.
    """

    def __init__(self, reason: str, kind: FailureKind) -> None:
        super().__init__(reason, kind)
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return self.reason


class Reply(NamedTuple):
    """An answer.

    Args:
        status: status code of the final answer.
        location: value of the first Location header, None if there is none; bytes that are not UTF-8 are lone
            surrogates.
        body: body of a 200; empty for any other status, or if a `Sink` has taken it.
    """

    status: int
    location: str | None
    body: bytes


class Observer(Protocol):
    """Is told of the progress of a transfer; see `embedding.fetch.transport`."""

    def began(self, resume: Callable[[], None]) -> None: ...
    def connected(self) -> None: ...
    def answering(self) -> None: ...
    def length(self, nbytes: int | None) -> None: ...
    def wants(self, nbytes: int) -> bool: ...


class Sink(Protocol):
    """Takes the body of an answer piece by piece. What it raises ends the transfer and comes out of `Transport.get`."""

    def head(self, head: Head) -> bool:
        """The head of the final answer is complete. Returns whether the body is wanted."""
        ...

    def write(self, data: bytes) -> None:
        """The next piece of the body."""
        ...


class Limits(NamedTuple):
    """Size limits of one response.

    Args:
        body: maximum size of its body, in bytes.
        headers: maximum size of all its headers together, in bytes; those of interim answers and trailers count.
    """

    body: int
    headers: int


class Head:
    """Parses the head of an answer line by line. Of interim answers (1xx) only the size is kept.

    Attributes:
        nbytes: size of all lines, in bytes.
        complete: whether the head of the final answer is complete.
        status: status code; 0 before the first status line.
        closes: whether the host closes the connection after the answer.
        location: see `Reply`.
        length: value of Content-Length; None if there is none, or the body is chunked.
        fields: by name in lower case, the first value of those headers that tell versions and ranges of a file.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self.complete = False
        self._begin(b"")

    def _begin(self, line: bytes) -> None:
        found = _STATUS_LINE.match(line)
        self.status = int(found[2]) if found else 0
        self.closes = found is not None and found[1] == b"0"
        self.location: str | None = None
        self.length: int | None = None
        self.fields: dict[str, str] = {}
        self._chunked = False

    def add(self, line: bytes) -> None:
        """Adds a line, with its line break. Of trailers, which follow the body, only the size is counted."""
        self.nbytes += len(line)
        if self.complete:
            return
        name, colon, value = line.partition(b":")
        if not line.strip():
            self.complete = self.status >= 200
        elif self._is_status(line):
            self._begin(line)
        elif colon:
            self._field(name.lower(), value.strip())  # not stripped: libcurl ignores header names that contain blanks

    @staticmethod
    def _is_status(line: bytes) -> bool:
        return line.startswith(b"HTTP/") and _STATUS_LINE.match(line) is not None

    def _field(self, name: bytes, value: bytes) -> None:
        match name:
            case b"location" if self.location is None:
                self.location = value.decode("utf-8", "surrogateescape")
            case b"content-length" if _LENGTH.fullmatch(value) and not self._chunked:
                self.length = int(value)
            case b"transfer-encoding":
                self._chunked, self.length = True, None
            case b"etag" | b"last-modified" | b"date" | b"accept-ranges" | b"content-range":
                self.fields.setdefault(name.decode(), value.decode("latin-1"))
            case b"connection":
                self.closes = self.closes or b"close" in value.lower()

    @property
    def has_end(self) -> bool:
        """Whether the body ends before its connection does."""
        return self._chunked or self.length is not None or self.status in (204, 304)
