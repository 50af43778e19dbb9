"""What transfers leave in memory once they have ended: handles of libcurl are kept for the next ones."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch.transport import Transport
from tests.support.transport import Watcher, get, transporting

AT_A_TIME = 16
LARGE = 4 * 2**20


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"large": bytes(LARGE)}) as host:
        yield host


async def complete(transport: Transport, host: ImageHost) -> None:
    replies = await asyncio.gather(*(get(transport, host.url("/ok/large")) for _ in range(AT_A_TIME)))
    assert {len(reply.body) for reply in replies} == {LARGE}


async def cancelled(transport: Transport, host: ImageHost) -> None:
    """In the middle of their bodies."""
    received = 0
    half = asyncio.Event()

    def wants(nbytes: int) -> bool:
        nonlocal received
        if received >= AT_A_TIME * LARGE // 2:
            half.set()
            return False
        received += nbytes
        return True

    tasks = [asyncio.create_task(get(transport, host.url("/ok/large"), Watcher(wants))) for _ in range(AT_A_TIME)]
    await half.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("transfers", [complete, cancelled])
def test_no_body_is_kept(host: ImageHost, transfers: Callable[[Transport, ImageHost], Awaitable[None]]) -> None:
    async def kept() -> int:
        async with transporting(keepalive_s=0) as transport:
            before, _ = tracemalloc.get_traced_memory()
            async with asyncio.timeout(20):
                await transfers(transport, host)
            # The host's own buffers end with its connections.
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        assert asyncio.run(kept()) < LARGE // 2
    finally:
        tracemalloc.stop()
