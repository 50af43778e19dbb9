"""The result of one HTTP request: a reply, or a failure of a certain kind; and the interfaces that see its progress."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol

_STATUS_LINE = re.compile(rb"HTTP/1\.(\d) (\d{3})")
_LENGTH = re.compile(rb"\d{1,18}")


class FailureKind(Enum):
    """What failed."""

    NAME = "the name has no address"
    CONNECTION = "no connection could be made; another try may succeed"
    TLS = "no TLS connection could be made"
    SILENCE = "the connection ended before an answer began"
    ANSWER = "the answer is cut short, malformed or too large"
    CLOSED = "the transport is closed"


class TransportError(Exception):
    """A hop failed. The text is the reason, in words for people and without addresses.

    Args:
        reason: the text.
        kind: what failed; with NAME, CONNECTION, TLS and SILENCE the host has said nothing.
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
        status: of the final answer.
        location: the first Location header; bytes that are no UTF-8 are lone surrogates.
        body: of a 200; empty for any other status, and where a `Sink` has taken it.
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
        """The head of the final answer is complete; gives whether its body is wanted."""
        ...

    def write(self, data: bytes) -> None:
        """The next piece of the body."""
        ...


class Limits(NamedTuple):
    """Of one answer.

    Args:
        body: bytes.
        headers: bytes of all headers together.
    """

    body: int
    headers: int


class Head:
    """The head of an answer, line by line; interim answers (1xx) are passed over."""

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
        """The first of each of some headers, by its name in lower case."""
        self._chunked = False

    def add(self, line: bytes) -> None:
        """A line with its end, as libcurl hands it over; trailers are counted only."""
        self.nbytes += len(line)
        if self.complete:
            return
        name, colon, value = line.partition(b":")
        if not line.strip():
            self.complete = self.status >= 200
        elif self._is_status(line):
            self._begin(line)
        elif colon:
            self._field(name.lower(), value.strip())  # a name with blanks is none that libcurl knows

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
