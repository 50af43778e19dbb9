"""Downloads from a real server on loopback, with made-up names, and the errors that they end in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.errors import MediaError
from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings
from embedding.fetch.guard import Resolver

PICTURE = bytes(range(256)) * 400
DOWNLOAD = "error when downloading the media url"


@pytest.fixture(scope="module")
def server() -> Iterator[ImageHost]:
    with ImageHost({"a.jpg": PICTURE, "größe {1}.jpg": b"quoted", "b.jpg": b"b"}) as host:
        yield host


@pytest.fixture
def host(server: ImageHost) -> ImageHost:
    """The server with its records emptied."""
    assert server.wait_for("open_connections", 0)
    server.requests.clear()
    server.connections = server.peak = 0
    return server


class FakeResolver:
    """Resolves made-up names, as no DNS can be reached here. The guard checks its addresses like those of a real one.

    Args:
        names: an address or several, by name; may be changed later.

    Attributes:
        asked: the names that were looked up, in their order.
    """

    def __init__(self, names: Mapping[str, str | list[str]]) -> None:
        self.names = dict(names)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        found = self.names.get(host)
        if found is None:
            raise OSError(f"{host} is not known")
        return [found] if isinstance(found, str) else found

    async def close(self) -> None:
        pass


@asynccontextmanager
async def fetching(resolver: Resolver | None = None, **settings: Any) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(FetchSettings(**{"allowed_networks": "127.0.0.0/8", **settings}), resolver)
    try:
        yield fetcher
    finally:
        await fetcher.close()


def fetch(
    *contents: str,
    timeout_ms: int = 3000,
    headers: Mapping[str, str] | None = None,
    resolver: Resolver | None = None,
    **settings: Any,
) -> list[bytes]:
    """Fetches one after the other with one fetcher."""

    async def all_of_them() -> list[bytes]:
        async with fetching(resolver, **settings) as fetcher:
            return [await fetcher.fetch(content, FetchOptions(timeout_ms, headers)) for content in contents]

    return asyncio.run(all_of_them())


def failure(content: str, **options: Any) -> str:
    with pytest.raises(MediaError) as caught:
        fetch(content, **options)
    return caught.value.message


async def failure_of(fetcher: Fetcher, content: str, timeout_ms: int = 3000) -> str:
    with pytest.raises(MediaError) as caught:
        await fetcher.fetch(content, FetchOptions(timeout_ms))
    return caught.value.message


async def outcome(fetcher: Fetcher, url: str, options: FetchOptions) -> str:
    """What became of it: "" for a picture, else the reason."""
    try:
        await fetcher.fetch(url, options)
    except MediaError as error:
        return error.message
    return ""


async def outcomes(fetcher: Fetcher, urls: list[str], options: FetchOptions) -> list[str]:
    """Of all of them at once."""
    return await asyncio.gather(*(outcome(fetcher, url, options) for url in urls))


def started(fetcher: Fetcher, urls: list[str], options: FetchOptions) -> list[asyncio.Task[str]]:
    """The outcomes to come."""
    return [asyncio.create_task(outcome(fetcher, url, options)) for url in urls]


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels them, and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def lost(results: list[str]) -> list[str]:
    return [result for result in results if result]


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def answer_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nup")
    writer.close()
