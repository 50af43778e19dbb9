"""What can go wrong, as plain data: one exception for a request, one for a single content, one value for a reply."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

MESSAGE_CHARS = 4000
"""The most that a message about a request may have: it goes into a log, and into somebody's browser."""
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Fault(Enum):
    """Why a whole request failed. The ingress holds the one table from fault to HTTP status."""

    UNAUTHORIZED = "unauthorized"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    """The body is not the MessagePack that it claims to be."""
    INVALID = "invalid"
    """Readable, but it breaks the request schema."""
    REFUSED = "refused"
    """Well formed, but it asks for something that cannot be given: a bad model, device or content."""
    TOO_SLOW = "too_slow"
    """Its body, or the reading of its reply, makes no progress."""
    OVERLOADED = "overloaded"
    """Not now: the server holds as much work as it may."""
    INTERNAL = "internal"


class RequestError(Exception):
    """A whole request fails.

    Args:
        fault: the kind of failure.
        message: for people: what was wrong, with which item, what to do. Cut where it becomes long, and control
            characters, which only a request can have brought, are escaped.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message[: MESSAGE_CHARS + 1])
        message = message if len(message) <= MESSAGE_CHARS else f"{message[: MESSAGE_CHARS - 1]}…"
        # All arguments go to super().__init__, or the exception does not survive pickling between processes.
        super().__init__(fault, message)
        self.fault = fault
        self.message = message

    def __str__(self) -> str:
        return self.message


class MediaError(Exception):
    """One content cannot be fetched, decoded or read; the others are unharmed.

    Args:
        message: for people: names the content and the reason.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SlowError(MediaError):
    """A picture takes longer to decode than it may."""


@dataclass(frozen=True, slots=True)
class ItemError:
    """The answer in place of one content's vectors. Marqo's protocol knows just these two constants.

    Source: docs/protocol.md, section 3.1.
    """

    message: str
    status_code: int = 400
    error_code: str = "inference_error"


class CrashError(ItemError):
    """The answer in place of a content that has killed the process which decoded it."""


class CostlyError(ItemError):
    """The answer in place of a content that took longer to decode than it may: it would again."""
