"""One hop at a time: a transport that may reach loopback, and what it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from embedding.fetch.guard import Guard, GuardedResolver
from embedding.fetch.headers import request_headers
from embedding.fetch.transport import Reply, Transport, TransportSettings
from embedding.fetch.url import make_target
from tests.support.fetch import FakeResolver


class Watcher:
    """An observer that writes down what it is told."""

    def __init__(self, wants: Callable[[int], bool] = lambda nbytes: True) -> None:
        self.told: list[object] = []
        self._wants = wants

    def began(self, resume: Callable[[], None]) -> None:
        self.resume = resume
        self.told.append("began")

    def connected(self) -> None:
        self.told.append("connected")

    def answering(self) -> None:
        self.told.append("answering")

    def length(self, nbytes: int | None) -> None:
        self.told.append(nbytes)

    def wants(self, nbytes: int) -> bool:
        return self._wants(nbytes)


@asynccontextmanager
async def transporting(
    names: FakeResolver | None = None, allowed: str = "127.0.0.1/32", **settings: Any
) -> AsyncIterator[Transport]:
    guard = Guard.parse(allowed, "allowed")
    resolver = GuardedResolver(guard, names or FakeResolver({}))
    transport = Transport(TransportSettings(**settings), guard.permits, resolver)
    try:
        yield transport
    finally:
        await transport.close()


async def get(transport: Transport, url: str, watcher: Watcher | None = None, **headers: str) -> Reply:
    return await transport.get(make_target(url), request_headers(headers, 2**20), watcher or Watcher())


async def body(transport: Transport, url: str) -> bytes:
    return (await get(transport, url)).body
