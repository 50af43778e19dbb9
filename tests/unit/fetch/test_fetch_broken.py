"""Downloads from servers that misbehave: docs/protocol.md, section 3.4."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.lib.image_host import SMALL_BODY, ImageHost
from embedding.fetch.fetcher import FetchOptions
from tests.support.fetch import (  # noqa: F401
    DOWNLOAD,
    PICTURE,
    FakeResolver,
    answer_up,
    failure,
    fetch,
    fetching,
    host,
    server,
    unused_port,
)


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 403, 404, 410, 429, 500, 503])
def test_only_200_is_success(host: ImageHost, status: int) -> None:
    url = host.url(f"/status/{status}")
    assert failure(url) == f"media url `{url}` returned {status}"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cut", "cut short"),
        ("/cut-chunked", "cut short"),
        ("/reset", ""),
        ("/bad-chunk", "not valid HTTP"),
        ("/garbage", "not valid HTTP"),
        ("/huge-headers", "not valid HTTP"),
        ("/many-headers", "not valid HTTP"),
    ],
)
def test_broken_replies_are_errors(host: ImageHost, path: str, reason: str) -> None:
    message = failure(host.url(path))
    assert message.startswith(f"{DOWNLOAD} `{host.url(path)}`: ")
    assert reason in message


def test_a_length_that_is_too_short_does_not_spoil_the_next_reply(host: ImageHost) -> None:
    async def one_after_the_other() -> list[bytes]:
        async with fetching() as fetcher:
            return [await fetcher.fetch(host.url(path), FetchOptions()) for path in ("/lie-short", "/ok/a.jpg")]

    assert asyncio.run(one_after_the_other()) == [SMALL_BODY[:2], PICTURE]


def test_a_stale_connection_is_replaced(host: ImageHost) -> None:
    assert fetch(*[host.url("/once/b.jpg")] * 10) == [b"b"] * 10


def test_a_refused_connection_is_tried_once_more() -> None:
    port = unused_port()

    class LateHost(FakeResolver):
        """Its server starts when it is looked up for the second time."""

        async def resolve(self, host: str, port: int) -> list[str]:
            if len(self.asked) == 1:
                self.server = await asyncio.start_server(answer_up, "127.0.0.1", port)
            return await super().resolve(host, port)

    names = LateHost({"late.example.com": "127.0.0.1"})
    assert fetch(f"http://late.example.com:{port}/x", resolver=names, dns_cache_s=0) == [b"up"]
    assert len(names.asked) == 2


def test_a_refused_connection_is_an_error() -> None:
    url = f"http://127.0.0.1:{unused_port()}/x"
    assert failure(url) == f"{DOWNLOAD} `{url}`: Connection refused"


def test_errors_show_no_address(host: ImageHost) -> None:
    names = FakeResolver({"pictures.example.com": "127.0.0.1"})
    for path in ("/cut", "/reset", "/garbage", "/hang"):
        message = failure(host.url(path, "pictures.example.com"), resolver=names, timeout_ms=100)
        assert "127.0.0.1" not in message
    message = failure(f"http://pictures.example.com:{unused_port()}/", resolver=names)
    assert "refused" in message
    assert "127.0.0.1" not in message


def test_an_unknown_host() -> None:
    message = failure("http://unknown.example.com/a.jpg", resolver=FakeResolver({}))
    assert DOWNLOAD in message
    assert "could not resolve the host `unknown.example.com`" in message
