"""Whatever fails behind the gate, on whatever path, the client gets an answer in its own format. Without Ray."""

import asyncio
import contextlib
import http.client
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import msgpack
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from ray import exceptions

from benchmarks.lib.process import free_port
from deployments.ingress.middleware import CLEANUP_KEY, add_gate
from deployments.ingress.replies import PartsResponse
from tests.support.marqo_client import MSGPACK
from tests.support.waiting import until

FAILURES: dict[str, tuple[Exception, int]] = {
    "bug": (ValueError("hunter2"), 500),
    "killed": (exceptions.OutOfMemoryError("hunter2"), 503),  # type: ignore[no-untyped-call]  # Ray's
    "gone": (exceptions.ActorUnavailableError("hunter2", b"0" * 16), 503),
    "memory": (MemoryError("hunter2"), 500),
    "timeout": (TimeoutError("hunter2"), 500),
}
PARTS = 100
"""Of a quarter of a megabyte each: far more than the sockets in between hold."""
released = threading.Event()


def failing() -> None:
    raise ValueError("hunter2")


def application() -> FastAPI:
    app = FastAPI()

    @app.get("/fails/{kind}")
    async def fails(kind: str) -> None:
        raise FAILURES[kind][0]

    @app.get("/dependency")
    async def dependency(_: Annotated[None, Depends(failing)]) -> None: ...

    @app.get("/unwritable")
    async def unwritable() -> Any:
        return object()

    @app.get("/parts")
    async def parts(request: Request) -> Response:
        request.scope[CLEANUP_KEY].callback(released.set)
        return PartsResponse([bytes(2**18)] * PARTS, {}, 1e6, 0.5)

    @app.post("/refuses")
    async def refuses() -> None:
        raise FAILURES["killed"][0]

    add_gate(app)
    return app


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    server = uvicorn.Server(uvicorn.Config(application(), port=number, log_level="critical"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    until(lambda: server.started or not thread.is_alive())
    assert thread.is_alive()
    yield number
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("accept", ["application/json", MSGPACK])
@pytest.mark.parametrize("path", [*(f"/fails/{kind}" for kind in FAILURES), "/dependency", "/unwritable"])
def test_no_failure_is_told_in_plain_text(port: int, path: str, accept: str) -> None:
    reply = httpx.get(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    body = reply.json() if accept == "application/json" else msgpack.unpackb(reply.content)
    assert reply.headers["content-type"] == accept
    assert reply.status_code == FAILURES.get(path.rpartition("/")[2], (None, 500))[1]
    assert ("retry-after" in reply.headers) == (reply.status_code == 503)
    assert "again" in body["detail"]
    assert "hunter2" not in body["detail"]


def test_a_refused_body_that_does_not_end_ends_its_connection(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.middleware.DRAIN_TIMEOUT_S", 0.3)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.putrequest("POST", "/refuses")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(bytes(1000))
        reply = connection.getresponse()
        assert (reply.status, reply.headers["connection"]) == (503, "close")


def test_a_client_that_does_not_read_its_reply_is_hung_up_on_and_holds_nothing(port: int) -> None:
    released.clear()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/parts")
        reply = connection.getresponse()
        assert reply.headers["content-length"] == str(PARTS * 2**18)
        assert released.wait(10)
        with pytest.raises(http.client.IncompleteRead):
            reply.read()


def test_one_that_reads_gets_it_all(port: int) -> None:
    reply = httpx.get(f"http://127.0.0.1:{port}/parts")
    assert len(reply.content) == PARTS * 2**18
