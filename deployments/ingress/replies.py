"""HTTP replies: errors in the format that the client accepts, and results that are sent in parts."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from embedding.errors import Fault, RequestError
from embedding.protocol import MSGPACK, encode_error

# Status and preamble of each fault's `detail`. Source: docs/protocol.md, section 1.3.
STATUS: dict[Fault, tuple[int, str]] = {
    Fault.UNAUTHORIZED: (401, ""),
    Fault.TOO_SLOW: (408, ""),
    Fault.TOO_LARGE: (413, ""),
    Fault.UNSUPPORTED_MEDIA_TYPE: (415, ""),
    Fault.MALFORMED: (400, ""),
    Fault.INVALID: (422, ""),
    Fault.REFUSED: (400, "An error occurred during vectorisation. "),
    Fault.OVERLOADED: (503, ""),
    Fault.TIMEOUT: (503, ""),
    Fault.LOST_REPLICA: (503, ""),
    Fault.INTERNAL: (500, "An unexpected error occurred during vectorisation. "),
}
HEADERS: dict[Fault, dict[str, str]] = {
    Fault.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    Fault.OVERLOADED: {"Retry-After": "1"},
    Fault.TIMEOUT: {"Retry-After": "1"},
    Fault.LOST_REPLICA: {"Retry-After": "1"},
}


def error_response(error: RequestError, accept: str | None) -> Response:
    """The reply for a RequestError, with the status and headers of its fault."""
    status, preamble = STATUS[error.fault]
    return detail_response(status, preamble + error.message, accept, HEADERS.get(error.fault))


def detail_response(status: int, detail: str, accept: str | None, headers: Mapping[str, str] | None = None) -> Response:
    """`{"detail": …}`: in MessagePack if `accept` is exactly its media type, else in JSON."""
    if accept == MSGPACK:
        return Response(encode_error(detail), status, headers, MSGPACK)
    return JSONResponse({"detail": detail}, status, headers)


class PartsResponse(Response):
    """A MessagePack reply that is sent in parts; the memory of each part is freed as soon as it has been sent.

    Args:
        parts: the body; the list is emptied.
        headers: in addition to content type and length.
        least_bytes_per_s: if the client reads a part more slowly the connection is closed, since the rest of the reply
            occupies memory until it is read.
        grace_s: seconds that each part may take in addition.
    """

    def __init__(
        self, parts: list[bytes], headers: Mapping[str, str], least_bytes_per_s: float, grace_s: float
    ) -> None:
        length = {"content-length": str(sum(map(len, parts)))}
        super().__init__(None, headers={**headers, **length}, media_type=MSGPACK)
        self._parts = parts
        self._least_bytes_per_s = least_bytes_per_s
        self._grace_s = grace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the reply.

        Raises:
            TimeoutError: the client reads too slowly; the server closes the connection.
        """
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._parts.reverse()
        while self._parts:
            part = self._parts.pop()
            message: dict[str, Any] = {"type": "http.response.body", "body": part, "more_body": bool(self._parts)}
            async with asyncio.timeout(self._grace_s + len(part) / self._least_bytes_per_s):
                await send(message)


def problems(errors: Sequence[Any]) -> str:
    """FastAPI's validation errors of a query as one line of text, without the values."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))[:200]}: {str(error['msg'])[:200]}" for error in errors[:10])
