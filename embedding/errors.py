"""Errors as plain data, without HTTP: an exception for a request, one for an item, and an item's error in a reply.

An *item* is one of the URLs, data URIs or texts of a request (`contents` in Marqo's protocol).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

MESSAGE_CHARS = 4000
"""Maximum length of a `RequestError`'s message, which is written to logs and sent to the client."""
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Fault(StrEnum):
    """Why a whole request failed. The ingress maps each fault to an HTTP status."""

    UNAUTHORIZED = "unauthorized"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    """The body is not valid MessagePack."""
    INVALID = "invalid"
    """The body is valid MessagePack, but does not match the request schema."""
    REFUSED = "refused"
    """The request is well formed, but cannot be served: unknown or bad model, device or item."""
    TOO_SLOW = "too_slow"
    """The client sends the body, or reads the reply, too slowly."""
    OVERLOADED = "overloaded"
    """The server has as much work as it accepts; the client may try again later."""
    TIMEOUT = "timeout"
    """It was not answered in time; the client may try again later."""
    LOST_REPLICA = "lost_replica"
    """A process that it needed has ended; the client may try again."""
    INTERNAL = "internal"


class ErrorKind(StrEnum):
    """Why an item, or a model, failed: for counting. The message of the error says more."""

    BAD_URL = "bad_url"
    """It is no URL and no data URI that can be read."""
    BAD_HEADERS = "bad_headers"
    """The request's headers for its downloads cannot be sent."""
    REFUSED_ADDRESS = "refused_address"
    """The guard permits no connection there."""
    HTTP_STATUS = "http_status"
    """The host's answer was not 200."""
    REDIRECTS = "redirects"
    """Too many, or from https to http."""
    TIMEOUT = "timeout"
    """Its own time, or that of its request, was over."""
    NAME = "name"
    """The host's name has no address."""
    CONNECTION = "connection"
    """No connection, or none that was kept until an answer began."""
    TLS = "tls"
    BAD_ANSWER = "bad_answer"
    """Cut short, or not valid HTTP."""
    HOST_LEFT_ALONE = "host_left_alone"
    """Its host has failed too often, and is left alone for a while."""
    TOO_LARGE = "too_large"
    """More bytes, pixels or characters than are taken."""
    NOT_A_PICTURE = "not_a_picture"
    """Of no format that is decoded here."""
    DAMAGED = "damaged"
    """A picture that cannot be decoded to its end."""
    TOO_SLOW = "too_slow"
    """It takes more CPU time to decode than is allowed."""
    CRASHED = "crashed"
    """It has ended the process that decoded it."""
    POISON = "poison"
    """It has crashed a decoder or taken too long in the last minutes, and was not tried again."""
    BUSY = "busy"
    """Too much of its kind is being worked on."""
    REFUSED = "refused"
    """The model cannot be loaded: it is unknown, invalid, or larger than the budget."""
    OUT_OF_MEMORY = "out_of_memory"
    INTERNAL = "internal"


class RequestError(Exception):
    """A whole request fails. Can be pickled.

    Args:
        fault: the kind of failure.
        message: for people: what was wrong, with which item, and what to do. It is cut to `MESSAGE_CHARS` characters,
            and its control characters are escaped, as they can only come from a request.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message[: MESSAGE_CHARS + 1])
        message = message if len(message) <= MESSAGE_CHARS else f"{message[: MESSAGE_CHARS - 1]}…"
        # All arguments go to super().__init__, otherwise the exception cannot be unpickled in another process.
        super().__init__(fault, message)
        self.fault = fault
        self.message = message

    def __str__(self) -> str:
        return self.message


class MediaError(Exception):
    """One item cannot be fetched, decoded or read. The other items of its request are not affected.

    Args:
        message: for people: names the item and the reason.
        kind: of the reason; by default that of the class.
    """

    kind = ErrorKind.INTERNAL

    def __init__(self, message: str, kind: ErrorKind | None = None) -> None:
        super().__init__(message)
        self.message = message
        if kind is not None:
            self.kind = kind


class SlowError(MediaError):
    """A picture takes more CPU time to decode than is allowed."""

    kind = ErrorKind.TOO_SLOW


@dataclass(frozen=True, slots=True)
class ItemError:
    """Takes the place of one item's vectors in a reply.

    Args:
        message: for people.
        status_code: always 400 in Marqo's protocol (docs/protocol.md, section 3.1).
        error_code: always "inference_error" in Marqo's protocol.
    """

    message: str
    status_code: int = 400
    error_code: str = "inference_error"


class CrashError(ItemError):
    """The error of an item that has killed the process which decoded it."""


class CostlyError(ItemError):
    """The error of an item whose decoding took more CPU time than is allowed. Another try would fail as well."""
