"""A body that goes to a sink, piece by piece: how files larger than memory are downloaded."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch.headers import request_headers
from embedding.fetch.reply import Head
from embedding.fetch.transport import Reply
from embedding.fetch.url import make_target
from tests.support.fetch import PICTURE, host, server  # noqa: F401
from tests.support.transport import Watcher, transporting


class Collector:
    """A sink that keeps what it is given, and raises at the piece that it is told to."""

    def __init__(self, statuses: tuple[int, ...] = (200,), fails: bool = False) -> None:
        self.heads: list[Head] = []
        self.body = b""
        self._statuses = statuses
        self._fails = fails

    def head(self, head: Head) -> bool:
        self.heads.append(head)
        return head.status in self._statuses

    def write(self, data: bytes) -> None:
        if self._fails:
            raise OSError("disk full")
        self.body += data


def through_sink(url: str, sink: Collector) -> Reply:
    async def work() -> Reply:
        async with transporting() as transport:
            return await transport.get(make_target(url), request_headers(None, 2**20), Watcher(), sink)

    return asyncio.run(work())


def test_a_sink_takes_the_body_in_place_of_the_reply(host: ImageHost) -> None:
    sink = Collector()
    assert through_sink(host.url("/ok/a.jpg"), sink) == Reply(200, None, b"")
    assert sink.body == PICTURE
    assert [head.length for head in sink.heads] == [len(PICTURE)]


def test_a_body_that_the_sink_does_not_want_is_not_written(host: ImageHost) -> None:
    sink = Collector(statuses=())
    assert through_sink(host.url("/ok/a.jpg"), sink).body == b""
    assert sink.body == b""


def test_what_a_sink_raises_ends_the_transfer(host: ImageHost) -> None:
    with pytest.raises(OSError, match="disk full"):
        through_sink(host.url("/ok/a.jpg"), Collector(fails=True))
    assert host.wait_for("open_connections", 0)
