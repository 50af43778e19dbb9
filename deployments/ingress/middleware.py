"""ASGI middleware for every HTTP request: checks the token, and answers every error in the format of the client."""

import asyncio
import hmac
import logging
import os
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.ingress.metrics import count_refusal
from deployments.ingress.replies import detail_response, error_response, problems
from deployments.ingress.retry import as_request_error, is_lost
from embedding.errors import Fault, RequestError

logger = logging.getLogger("ray.serve")

TOKEN_VARIABLE = "MARQO_INFERENCE_TOKEN"
"""If set, requests must carry this bearer token. Marqo sends none."""
OPEN_PATHS = frozenset(("/", "/healthz", "/ui"))
"""Paths that need no token for GET: load balancers ask for the first two, and a browser that opens the page sends no
token; the page holds nothing, and sends the token with what it asks for."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
DRAIN_TIMEOUT_S = 5.0
"""How long the rest of a refused request's body is read: most clients read the answer only after sending all of it."""
CLEANUP_KEY = "marqo.cleanup"
"""Key in a request's ASGI scope: an ExitStack that is closed when the answer has been sent, or cannot be sent."""


class Gate:
    """The outermost middleware of the application: handles the token, HEAD, and unexpected errors.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # A secret: taken from the environment of the replica, because dashboards show configs.
        self._expected = f"Bearer {token}".encode() if (token := os.environ.get(TOKEN_VARIABLE)) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = _Exchange(headers, receive, send)
        with ExitStack() as cleanup:
            # The server itself omits the body of an answer to HEAD.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            inner = {**scope, "method": method, CLEANUP_KEY: cleanup}
            try:
                self._check_token(inner, headers)
                await self._app(inner, exchange.receive, exchange.send)
            except Exception as error:
                if exchange.answered:
                    raise  # part of an answer has been sent: the server closes the connection
                _log(error, scope)
                count_refusal(error)
                answer = error_response(as_request_error(error), headers.get("accept"))
                await answer(inner, exchange.receive, exchange.send)

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        if self._expected is None or (scope["method"] == "GET" and _path(scope) in OPEN_PATHS):
            return
        given = headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), self._expected):
            raise RequestError(Fault.UNAUTHORIZED, "A bearer token is needed in the header Authorization")


class _Exchange:
    """Wraps ASGI's `receive` and `send` of one request: notes whether its body is read and its answer begun."""

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._read = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self.answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and not self._read:
                message = await self._after_body(message)
            self.answered = True
        await self._send(message)

    async def _after_body(self, refusal: Message) -> Message:
        """Reads the rest of the body before a refusal is sent; on timeout adds `connection: close` to the refusal."""
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while not self._read:
                    await self.receive()
        except TimeoutError:
            refusal["headers"] = [*refusal.get("headers", ()), (b"connection", b"close")]
        return refusal


def _path(scope: Scope) -> str:
    """The path without the application's prefix."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path[len(prefix) :] if path.startswith(prefix) else path


def _log(error: Exception, scope: Scope) -> None:
    what = f"{scope['method']} failed"
    if is_lost(error):
        logger.warning(f"{what}: lost a replica ({type(error).__name__})")
    elif not isinstance(error, RequestError):
        logger.error(what, exc_info=error)


async def _http_error(request: Request, error: Any) -> Response:
    headers = dict(error.headers or {})
    detail = str(error.detail)
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
        detail = f"{request.scope['method']} is not for this path; it takes {headers['Allow']}"
    return detail_response(error.status_code, detail, request.headers.get("accept"), headers)


async def _bad_query(request: Request, error: Any) -> Response:
    return error_response(RequestError(Fault.INVALID, problems(error.errors())), request.headers.get("accept"))


def _allowed(request: Request) -> list[str]:
    """The methods that a path has. Starlette lists those of its first route only."""
    fit = [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.router.routes
        )
    ]
    return [*fit, "HEAD"] if "GET" in fit else fit


def add_gate(app: FastAPI) -> None:
    """Puts an application behind `Gate`, and formats the errors of FastAPI like all others."""
    app.add_middleware(Gate)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _bad_query)
