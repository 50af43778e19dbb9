"""Downloads from hosts that fail again and again."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch import transfer
from embedding.fetch.fetcher import FetchOptions
from tests.support.fetch import DOWNLOAD, FakeResolver, answer_up, failure_of, fetching, host, server, unused_port  # noqa: F401


def test_a_dead_host_is_left_alone_until_it_is_back(host: ImageHost) -> None:
    names = FakeResolver({"dead.example.com": "127.0.0.1", "fine.example.com": "127.0.0.1"})
    port = unused_port()

    async def die_and_rise() -> bytes:
        async with fetching(names, breaker_failures=3, breaker_pause_s=1) as fetcher:
            url = f"http://dead.example.com:{port}/"
            for _ in range(3):
                assert "Connection refused" in await failure_of(fetcher, url)
            message = await failure_of(fetcher, url, timeout_ms=100)
            assert message.startswith(f"{DOWNLOAD} `{url}`: its host failed 3 times in a row")
            assert await fetcher.fetch(host.url("/ok/b.jpg", "fine.example.com"), FetchOptions()) == b"b"
            async with await asyncio.start_server(answer_up, "127.0.0.1", port):
                return await fetcher.fetch(url, FetchOptions())

    assert asyncio.run(die_and_rise()) == b"up"


def test_answers_of_any_status_keep_the_breaker_closed(host: ImageHost) -> None:
    async def many() -> None:
        async with fetching(breaker_failures=1) as fetcher:
            for path in (
                "/status/500",
                "/bad-chunk",
                "/redirect-to?url=ftp://a.io/",
                "/garbage",
                "/status/404",
            ):
                assert "in a row" not in await failure_of(fetcher, host.url(path))

    asyncio.run(many())


def test_impatient_callers_do_not_open_the_breaker(host: ImageHost) -> None:
    async def many() -> bytes:
        async with fetching(breaker_failures=1) as fetcher:
            await failure_of(fetcher, host.url("/hang"), timeout_ms=10)
            return await fetcher.fetch(host.url("/ok/b.jpg"), FetchOptions())

    assert asyncio.run(many()) == b"b"


def test_silence_opens_the_breaker(host: ImageHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MIN_SILENCE_S", 0.4)

    async def slow() -> str:
        async with fetching(breaker_failures=2, breaker_silence_s=0.3) as fetcher:
            url = host.url("/hang")
            await asyncio.gather(*(failure_of(fetcher, url, timeout_ms=500) for _ in range(2)))
            return await failure_of(fetcher, url, timeout_ms=50)

    assert "last failure: no answer" in asyncio.run(slow())
