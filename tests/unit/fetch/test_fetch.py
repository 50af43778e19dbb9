"""Contents that become bytes, or are refused: docs/protocol.md, sections 3.4 and 4.1. Loopback only."""

from __future__ import annotations

import asyncio
import base64
import random

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch.fetcher import FetchOptions
from tests.support.fetch import PICTURE, FakeResolver, failure, fetch, fetching, host, server  # noqa: F401

# --- what works ---


@pytest.mark.parametrize("path", ["/ok/a.jpg", "/ok/a.jpg?delay=0.05", "/chunked/a.jpg", "/close/a.jpg"])
def test_a_picture_arrives_whole(host: ImageHost, path: str) -> None:
    assert fetch(host.url(path)) == [PICTURE]


def test_connections_are_kept(host: ImageHost) -> None:
    assert fetch(*[host.url("/ok/a.jpg")] * 5, trial_s=0) == [PICTURE] * 5
    assert len(host.requests) == 5
    assert host.connections == 1


def test_urls_are_quoted_once(host: ImageHost) -> None:
    fetch(*(host.url(f"/status/200?q={q}") for q in ("a b", "a%20b", "é", "%zz", "a+b")))
    assert [r.path[14:] for r in host.requests] == ["a%20b", "a%20b", "%C3%A9", "%25zz", "a+b"]


def test_an_empty_body_is_no_error_here(host: ImageHost) -> None:
    assert fetch(host.url("/empty")) == [b""]


def test_compressed_bodies_stay_compressed(host: ImageHost) -> None:
    (body,) = fetch(host.url("/gzip-bomb"), max_bytes=2**20)
    assert len(body) < 2**20


def test_no_cookies_are_kept(host: ImageHost) -> None:
    fetch(host.url("/cookie"), host.url("/cookie"))
    assert not any("cookie" in request.headers for request in host.requests)


def test_names_are_resolved_once_for_all(host: ImageHost) -> None:
    names = FakeResolver({"pictures.example.com": "127.0.0.1"})

    async def many() -> None:
        async with fetching(names) as fetcher:
            url = host.url("/close/b.jpg", "pictures.example.com")
            await asyncio.gather(*(fetcher.fetch(url, FetchOptions()) for _ in range(20)))
            await fetcher.fetch(url, FetchOptions())

    asyncio.run(many())
    assert names.asked == ["pictures.example.com"]
    assert {request.headers["host"] for request in host.requests} == {f"pictures.example.com:{host.port}"}


def test_the_environments_proxies_are_not_used(host: ImageHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(host.url("/ok/b.jpg")) == [b"b"]


# --- data URIs and the rest ---


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        ("png;base64,aGVsbG8=", b"hello"),
        ("jpeg;charset=x;base64,aGVsbG8=", b"hello"),
        ("png;base64,aGVs\r\n bG8=\n", b"hello"),
        ("png;base64,aG!V-s_bG8=", b"hello"),
        ("png;base64,aGVsbG8=base64,", b"hello"),
        ("png;base64,aGVsbG8=aGVsbG8=", b"hello"),
        ("png;base64,aGVsbA==aGVs", b"hell"),
        ("png;base64,aGVsbA=\n=====", b"hell"),
        ("png;base64,=a==GVs=bG=8=", b"hello"),
        ("png;base64,", b""),
    ],
)
def test_data_uris(payload: str, data: bytes) -> None:
    assert fetch("data:image/" + payload) == [data]


@pytest.mark.parametrize("rest", ["png,aGVsbG8=", "svg+xml;utf8,<svg/>", "png;base64", ""])
def test_data_uris_without_base64(rest: str) -> None:
    message = failure("data:image/" + rest)
    assert message.startswith(f"cannot identify image file `data:image/{rest}`")
    assert "holds no `base64,`" in message


@pytest.mark.parametrize("payload", ["aGVsbG8", "aGVsbG8=ä", "a", "ä", "aGVsbG\ud800=", "=" * 1000])
def test_bad_base64(payload: str) -> None:
    message = failure("data:image/png;base64," + payload)
    assert "Invalid base64 data" in message
    message.encode("utf-8")


def test_data_uris_are_limited_and_not_repeated() -> None:
    uri = "data:image/png;base64," + base64.b64encode(bytes(3000)).decode()
    assert fetch(uri, max_bytes=3000) == [bytes(3000)]
    for limit in (2999, 10):
        message = failure(uri, max_bytes=limit)
        assert f"{limit} bytes" in message
        assert len(message) < 200
    assert len(failure(uri[:-1])) < 200


def test_long_data_uris_are_the_same_bytes() -> None:
    """Longer than a piece, with what encoders and people put between the characters."""
    data = random.Random(0).randbytes(2**20 + 1)
    lines = base64.encodebytes(data).decode()
    strange = f"{lines[:5]}={lines[5:700_000]}=!{lines[700_000:]}AAAA"
    for text in (base64.b64encode(data).decode(), lines, strange):
        assert fetch("data:image/png;base64," + text) == [data]
    for text in (lines[:-2], lines[:-3], lines[:-4], lines[:700_000] + "é" + lines[700_000:], lines + "é"):
        assert "Invalid base64 data" in failure("data:image/png;base64," + text)


def test_a_long_data_uri_leaves_the_event_loop_to_others() -> None:
    uri = "data:image/png;base64," + base64.b64encode(bytes(24 * 2**20)).decode()

    async def turns() -> int:
        async with fetching() as fetcher:
            decoding = asyncio.create_task(fetcher.fetch(uri, FetchOptions()))
            count = 0
            while not decoding.done():
                await asyncio.sleep(0)
                count += 1
            assert len(await decoding) == 24 * 2**20
            return count

    assert asyncio.run(turns()) > 20


@pytest.mark.parametrize("content", ["/etc/hostname", "pyproject.toml", "DATA:image/png;base64,", "data:text/plain,x"])
def test_nothing_else_is_opened(content: str) -> None:
    assert "is not a local file, a valid url, or a base64-encoded image" in failure(content)
