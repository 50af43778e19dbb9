"""Downloads from a real server that misbehaves: protocol sheet, sections 3.4 and 4.1 to 5. Loopback only."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from embedding.errors import MediaError
from embedding.fetch import Fetcher, FetchOptions, FetchSettings
from embedding.guard import VARIABLE, SystemResolver
from tests.image_host import SMALL_BODY, ImageHost

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


class Names(AbstractResolver):
    """Made-up names, as no DNS can be reached here. The guard stands before it as before the real one."""

    def __init__(self, names: Mapping[str, str | list[str]]) -> None:
        self.names = dict(names)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        found = self.names.get(host)
        if found is None:
            raise OSError(f"{host} is not known")
        addresses = [found] if isinstance(found, str) else found
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in addresses
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def fetching(resolver: AbstractResolver | None = None, **settings: Any) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(FetchSettings(**{"allowed_networks": "127.0.0.0/8", **settings}), resolver)
    try:
        yield fetcher
    finally:
        await fetcher.close()


def fetch(
    *contents: str,
    timeout_ms: int = 3000,
    headers: Mapping[str, str] | None = None,
    resolver: AbstractResolver | None = None,
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


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ok/a.jpg", "/ok/a.jpg?delay=0.05", "/chunked/a.jpg", "/close/a.jpg"])
def test_a_picture_arrives_whole(host: ImageHost, path: str) -> None:
    assert fetch(host.url(path)) == [PICTURE]


def test_connections_are_kept(host: ImageHost) -> None:
    assert fetch(*[host.url("/ok/a.jpg")] * 5) == [PICTURE] * 5
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
    names = Names({"pictures.example.com": "127.0.0.1"})

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


# --- headers --------------------------------------------------------------------------------------


def test_our_own_headers(host: ImageHost) -> None:
    fetch(host.url("/ok/b.jpg"))
    assert host.requests[0].headers == {
        "host": f"127.0.0.1:{host.port}",
        "user-agent": "Marqobot/1.0",
        "accept": "*/*",
    }


def test_download_headers_are_merged_over_ours(host: ImageHost) -> None:
    fetch(host.url("/ok/b.jpg"), headers={"User-Agent": "me", "X-Token": "ä", "accept-encoding": "gzip"})
    sent = host.requests[0].headers
    assert sent["user-agent"] == "me"
    assert sent["x-token"].encode("latin-1") == "ä".encode()
    assert sent["accept-encoding"] == "gzip"


def test_a_key_of_another_case_is_added(host: ImageHost) -> None:
    fetch(host.url("/ok/b.jpg"), headers={"user-agent": "me"})
    assert host.requests[0].headers["user-agent"] == "Marqobot/1.0, me"


def test_the_connection_is_not_the_callers(host: ImageHost) -> None:
    """A Content-Length on a GET would make the server swallow the next request on the connection."""
    bad = {
        "Content-Length": "50",
        "Transfer-Encoding": "chunked",
        "Connection": "close",
        "Expect": "100-continue",
    }
    assert fetch(host.url("/ok/b.jpg"), host.url("/ok/a.jpg"), headers=bad) == [b"b", PICTURE]
    assert not {name.lower() for name in bad} & set(host.requests[0].headers)
    assert host.connections == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "secret\r\nX-B: c"},
        {"X-A": "secret\n"},
        {"X-A": "secret\r"},
        {"X-A": "secret\0"},
        {"X-A": "secret\ud800"},
        {"X-A\r\nX-B": "secret"},
        {"X A": "secret"},
        {"X-A:": "secret"},
        {"": "secret"},
        {"X-ä": "secret"},
    ],
)
def test_malformed_headers_are_the_items_error(host: ImageHost, headers: dict[str, str]) -> None:
    message = failure(host.url("/ok/b.jpg"), headers=headers)
    assert DOWNLOAD in message
    assert "malformed" in message
    assert "secret" not in message
    assert not host.requests


def test_oversized_headers_are_the_items_error(host: ImageHost) -> None:
    assert "allowed" in failure(host.url("/ok/b.jpg"), headers={"X-A": "a" * 2**20})
    assert not host.requests


def test_user_information_is_sent_as_a_header(host: ImageHost) -> None:
    fetch(host.url("/ok/b.jpg", "user:p%40ss@127.0.0.1"))
    assert host.requests[0].headers["authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    fetch(host.url("/ok/b.jpg", "user:p%40ss@127.0.0.1"), headers={"Authorization": "mine"})
    assert host.requests[1].headers["authorization"] == "mine"


# --- redirects ------------------------------------------------------------------------------------


def test_ten_redirects_and_no_more(host: ImageHost) -> None:
    assert fetch(host.url("/redirect/10")) == [SMALL_BODY]
    assert host.connections == 1
    message = failure(host.url("/redirect/11"))
    assert DOWNLOAD in message
    assert "more than 10 redirects" in message
    assert fetch(host.url("/redirect/1"), max_redirects=1) == [SMALL_BODY]
    assert "more than 0 redirects" in failure(host.url("/redirect/1"), max_redirects=0)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect(host: ImageHost, code: int) -> None:
    assert fetch(host.url(f"/redirect-to?url=/ok/b.jpg&code={code}")) == [b"b"]


def test_a_redirect_to_itself_ends(host: ImageHost) -> None:
    assert "redirects" in failure(host.url("/redirect-to?url=" + quote("/redirect-to?url=x")), max_redirects=0)


def test_a_redirect_without_a_location_is_a_status(host: ImageHost) -> None:
    assert failure(host.url("/location-missing")).endswith("returned 302")


CREDENTIALS = {"Authorization": "a", "cookie": "b", "Proxy-Authorization": "c", "X-Other": "d", "Host": "e"}


@pytest.mark.parametrize("there", ["same host", "other port", "other name"])
def test_credentials_stay_with_their_host(host: ImageHost, there: str) -> None:
    kept = there == "same host"
    with ImageHost({"b.jpg": b"b"}) as other:
        target = {
            "same host": host.url("/ok/b.jpg"),
            "other port": other.url("/ok/b.jpg"),
            "other name": host.url("/ok/b.jpg", "other.example.com"),
        }[there]
        names = Names({"other.example.com": "127.0.0.1"})
        url = host.url(f"/redirect-to?url={quote(target)}")
        assert fetch(url, headers=CREDENTIALS, resolver=names) == [b"b"]
        first, last = host.requests[0], [*host.requests, *other.requests][-1]
    assert first.headers["authorization"] == "a"
    assert {"authorization", "cookie", "proxy-authorization"} & set(last.headers) == (
        {"authorization", "cookie", "proxy-authorization"} if kept else set()
    )
    assert last.headers["x-other"] == "d"
    assert first.headers["host"] == "e"
    assert (last.headers["host"] == "e") == kept


def test_credentials_of_a_url_stay_with_their_host(host: ImageHost) -> None:
    with ImageHost({"b.jpg": b"b"}) as other:
        fetch(host.url(f"/redirect-to?url={quote(other.url('/ok/b.jpg'))}", "user:secret@127.0.0.1"))
        assert "authorization" not in other.requests[0].headers


# --- statuses and broken servers ------------------------------------------------------------------


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
    async def one_after_the_other() -> bytes:
        async with fetching() as fetcher:
            await asyncio.gather(fetcher.fetch(host.url("/lie-short"), FetchOptions()), return_exceptions=True)
            return await fetcher.fetch(host.url("/ok/a.jpg"), FetchOptions())

    assert asyncio.run(one_after_the_other()) == PICTURE


def test_a_stale_connection_is_replaced(host: ImageHost) -> None:
    assert fetch(*[host.url("/once/b.jpg")] * 10) == [b"b"] * 10


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def answer_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nup")
    writer.close()


def test_a_refused_connection_is_tried_once_more() -> None:
    port = unused_port()

    class LateHost(Names):
        """Its server starts when it is looked up for the second time."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            if len(self.asked) == 1:
                self.server = await asyncio.start_server(answer_up, "127.0.0.1", port)
            return await super().resolve(host, port, family)

    names = LateHost({"late.example.com": "127.0.0.1"})
    assert fetch(f"http://late.example.com:{port}/x", resolver=names, dns_cache_s=0) == [b"up"]
    assert len(names.asked) == 2


def test_a_refused_connection_is_an_error() -> None:
    url = f"http://127.0.0.1:{unused_port()}/x"
    assert failure(url) == f"{DOWNLOAD} `{url}`: Connection refused"


def test_errors_show_no_address(host: ImageHost) -> None:
    names = Names({"pictures.example.com": "127.0.0.1"})
    for path in ("/cut", "/reset", "/garbage", "/hang"):
        message = failure(host.url(path, "pictures.example.com"), resolver=names, timeout_ms=100)
        assert "127.0.0.1" not in message
    message = failure(f"http://pictures.example.com:{unused_port()}/", resolver=names)
    assert "refused" in message
    assert "127.0.0.1" not in message


def test_an_unknown_host() -> None:
    message = failure("http://unknown.example.com/a.jpg", resolver=Names({}))
    assert DOWNLOAD in message
    assert "could not resolve the host `unknown.example.com`" in message


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/hang", "/drip", "/drip?every=0.01", "/lie-length", "/ok/a.jpg?delay=9"])
def test_the_time_limit_ends_a_transfer_and_frees_it(host: ImageHost, path: str) -> None:
    async def timed() -> float:
        async with fetching(max_bytes=2**60) as fetcher:
            started = time.monotonic()
            message = await failure_of(fetcher, host.url(path), timeout_ms=200)
            took = time.monotonic() - started
            assert DOWNLOAD in message
            assert "200 ms" in message
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            return took

    assert 0.19 < asyncio.run(timed()) < 1.5


def test_the_time_limit_spans_redirects(host: ImageHost) -> None:
    url = host.url("/redirect-to?delay=0.2&url=" + quote("/redirect-to?delay=0.2&url=/ok/b.jpg"))
    assert "300 ms" in failure(url, timeout_ms=300)
    assert fetch(url, timeout_ms=3000) == [b"b"]


@pytest.mark.parametrize("timeout_ms", [0, -1])
def test_no_time_limit_means_the_default(host: ImageHost, timeout_ms: int) -> None:
    assert fetch(host.url("/ok/b.jpg"), timeout_ms=timeout_ms) == [b"b"]


def test_the_time_limit_has_a_limit(host: ImageHost) -> None:
    assert "150 ms" in failure(host.url("/hang"), timeout_ms=10**12, max_timeout_ms=150)


@pytest.mark.parametrize("path", ["/endless", "/ok/a.jpg", "/chunked/a.jpg", "/close/a.jpg", "/lie-length"])
def test_bytes_are_counted_as_they_arrive(host: ImageHost, path: str) -> None:
    async def limited() -> None:
        async with fetching(max_bytes=50_000) as fetcher:
            message = await failure_of(fetcher, host.url(path))
            assert "50000" in message
            assert "allowed" in message
            if not path.endswith("a.jpg"):  # those are over already
                assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            assert await fetcher.fetch(host.url("/ok/b.jpg"), FetchOptions()) == b"b"

    asyncio.run(limited())


def test_exactly_the_allowed_bytes(host: ImageHost) -> None:
    assert fetch(host.url("/chunked/a.jpg"), max_bytes=len(PICTURE)) == [PICTURE]
    assert "allowed" in failure(host.url("/chunked/a.jpg"), max_bytes=len(PICTURE) - 1)


@pytest.mark.parametrize(("limits", "peak"), [({"max_concurrency": 3}, 3), ({"max_per_host": 2}, 2), ({}, 12)])
def test_transfers_at_a_time(host: ImageHost, limits: dict[str, int], peak: int) -> None:
    async def many() -> None:
        async with fetching(**limits) as fetcher:
            url = host.url("/ok/b.jpg?delay=0.2")
            await asyncio.gather(*(fetcher.fetch(url, FetchOptions()) for _ in range(12)))

    asyncio.run(many())
    assert host.peak == peak


def test_waiting_for_a_slot_is_not_held_against_the_time_limit(host: ImageHost) -> None:
    async def queue() -> list[bytes]:
        async with fetching(max_per_host=1) as fetcher:
            url = host.url("/ok/b.jpg?delay=0.2")
            return await asyncio.gather(*(fetcher.fetch(url, FetchOptions(700)) for _ in range(5)))

    assert asyncio.run(queue()) == [b"b"] * 5


def test_a_slow_host_does_not_hold_up_another(host: ImageHost) -> None:
    names = Names({"slow.example.com": "127.0.0.1", "quick.example.com": "127.0.0.1"})

    async def both() -> float:
        async with fetching(names, max_per_host=4, max_concurrency=8) as fetcher:
            slow = [
                asyncio.create_task(fetcher.fetch(host.url("/hang", "slow.example.com"), FetchOptions(3000)))
                for _ in range(40)
            ]
            await asyncio.to_thread(host.wait_for, "in_flight", 4)
            started = time.monotonic()
            quick = host.url("/ok/b.jpg", "quick.example.com")
            await asyncio.gather(*(fetcher.fetch(quick, FetchOptions()) for _ in range(40)))
            took = time.monotonic() - started
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            return took

    assert asyncio.run(both()) < 2


def test_a_cancelled_download_frees_everything(host: ImageHost) -> None:
    async def cancel() -> bytes:
        async with fetching(max_per_host=1, max_concurrency=1) as fetcher:
            url = host.url("/hang")
            tasks = [asyncio.create_task(fetcher.fetch(url, FetchOptions())) for _ in range(3)]
            assert await asyncio.to_thread(host.wait_for, "in_flight", 1)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(result, asyncio.CancelledError)
                for result in await asyncio.gather(*tasks, return_exceptions=True)
            )
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            return await fetcher.fetch(host.url("/ok/b.jpg"), FetchOptions())

    assert asyncio.run(cancel()) == b"b"


def test_a_closed_fetcher_refuses(host: ImageHost) -> None:
    async def late() -> str:
        async with fetching() as fetcher:
            hanging = asyncio.create_task(failure_of(fetcher, host.url("/hang")))
            assert await asyncio.to_thread(host.wait_for, "in_flight", 1)
        assert DOWNLOAD in await hanging
        return await failure_of(fetcher, host.url("/ok/b.jpg"))

    assert "shutting down" in asyncio.run(late())


# --- the breaker ----------------------------------------------------------------------------------


def test_a_dead_host_is_left_alone_until_it_is_back(host: ImageHost) -> None:
    names = Names({"dead.example.com": "127.0.0.1", "fine.example.com": "127.0.0.1"})
    port = unused_port()

    async def die_and_rise() -> bytes:
        async with fetching(names, breaker_failures=3, breaker_pause_s=0.3) as fetcher:
            url = f"http://dead.example.com:{port}/"
            for _ in range(3):
                assert "Connection refused" in await failure_of(fetcher, url)
            message = await failure_of(fetcher, url)
            assert message.startswith(f"{DOWNLOAD} `{url}`: its host failed 3 times in a row")
            assert await fetcher.fetch(host.url("/ok/b.jpg", "fine.example.com"), FetchOptions()) == b"b"
            async with await asyncio.start_server(answer_up, "127.0.0.1", port):
                await asyncio.sleep(0.3)
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


def test_timeouts_open_the_breaker(host: ImageHost) -> None:
    async def slow() -> str:
        async with fetching(breaker_failures=2) as fetcher:
            url = host.url("/hang")
            await asyncio.gather(*(failure_of(fetcher, url, timeout_ms=1100) for _ in range(2)))
            return await failure_of(fetcher, url)

    assert "no complete answer in time" in asyncio.run(slow())


# --- the guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "netloc",
    [
        "127.0.0.1",
        "example.com@127.0.0.1",
        "user:secret@127.0.0.1",
        "good.example.com%5C@127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "%31%32%37.0.0.1",
    ],
)
def test_literals_are_refused(host: ImageHost, netloc: str) -> None:
    message = failure(host.url("/ok/b.jpg", netloc), allowed_networks="")
    assert "is not publicly routable" in message
    assert VARIABLE in message
    assert "secret" not in message
    assert not host.connections


LOOPBACK = """
2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 017700000001 127.1 127.0.0.1. 0 [::] localhost １２７.0.0.1
①②⑦.0.0.1 127。0。0。1 127.0.0.1%00 127.0.0.1%2f.example.com %31%32%37.0.0.1
"""


@pytest.mark.parametrize("netloc", LOOPBACK.split())
def test_no_spelling_reaches_loopback(host: ImageHost, netloc: str) -> None:
    """Rejected as a URL or by the guard: either way nobody connects."""
    failure(host.url("/ok/b.jpg", netloc), allowed_networks="")
    assert not host.connections


class NamesOrSystem(Names):
    """Unknown names go to the system, which takes `0x7f.1` and its like for addresses."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host in self.names:
            return await super().resolve(host, port, family)
        resolver = SystemResolver(1)
        try:
            return await resolver.resolve(host, port, family)
        finally:
            await resolver.close()


@pytest.mark.parametrize("netloc", LOOPBACK.split())
def test_no_spelling_reaches_loopback_by_a_redirect(host: ImageHost, netloc: str) -> None:
    """What a redirect names is not held against the rules for URLs, so here it is the guard alone."""
    with ImageHost(address="127.0.0.2") as public:
        names = NamesOrSystem({"public.example.com": "127.0.0.2"})
        redirect = public.url(f"/redirect-to?url={quote(host.url('/ok/b.jpg', netloc))}", "public.example.com")
        failure(redirect, allowed_networks="127.0.0.2/32", resolver=names)
        assert public.requests
    assert not host.connections


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]])
def test_names_are_refused_by_what_they_resolve_to(host: ImageHost, addresses: list[str]) -> None:
    names = Names({"rebind.example.com": addresses})
    url = host.url("/ok/b.jpg", "rebind.example.com")
    message = failure(url, allowed_networks="", resolver=names)
    assert f"`{url}`" in message
    assert "`rebind.example.com` resolved to an address that is not publicly routable" in message
    assert VARIABLE in message
    assert "127.0.0.1" not in message
    assert not host.connections


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2/", "http://[::1]/", "http://inside.example.com/", "//169.254.169.254/"]
)
def test_every_hop_is_checked(host: ImageHost, target: str) -> None:
    names = Names({"inside.example.com": "10.0.0.1"})
    message = failure(host.url(f"/redirect-to?url={quote(target)}"), allowed_networks="127.0.0.1/32", resolver=names)
    assert "not publicly routable" in message
    assert len(host.requests) == 1


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://example.com/", "gopher://127.0.0.1/", "data:image/png,"]
)
def test_a_redirect_cannot_change_to_another_scheme(host: ImageHost, target: str) -> None:
    message = failure(host.url(f"/redirect-to?url={quote(target)}"))
    assert "over http and https" in message
    assert f"`{target.split(':')[0]}`" in message


def test_a_name_that_changes_its_mind_is_checked_again(host: ImageHost) -> None:
    """DNS rebinding: the first answer is allowed, the next one is not."""
    names = Names({"rebind.example.com": "127.0.0.1"})

    async def rebind() -> str:
        async with fetching(names, allowed_networks="127.0.0.1/32", dns_cache_s=0) as fetcher:
            url = host.url("/close/b.jpg", "rebind.example.com")
            assert await fetcher.fetch(url, FetchOptions()) == b"b"
            names.names["rebind.example.com"] = "127.0.0.2"
            return await failure_of(fetcher, url)

    assert "not publicly routable" in asyncio.run(rebind())
    assert len(host.requests) == 1


def test_a_bad_network_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        Fetcher(FetchSettings(allowed_networks="10.0.0.0/99"))


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of our own for pictures.example.com, with its key."""
    from datetime import UTC, datetime, timedelta

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.example.com")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pictures.example.com")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def test_tls_is_verified(certificate: Path) -> None:
    names = Names({"pictures.example.com": "127.0.0.1", "other.example.com": "127.0.0.1"})
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with ImageHost({"a.jpg": PICTURE}, tls=context) as host:
        url = host.url("/ok/a.jpg", "pictures.example.com")
        assert fetch(url, resolver=names, ca_file=str(certificate)) == [PICTURE]
        assert "certificate" in failure(url, resolver=names)
        wrong = host.url("/ok/a.jpg", "other.example.com")
        assert "certificate" in failure(wrong, resolver=names, ca_file=str(certificate))


def test_plain_http_on_a_tls_url_is_an_error(host: ImageHost) -> None:
    message = failure(host.url("/ok/a.jpg").replace("http:", "https:"))
    assert message.startswith(DOWNLOAD)


# --- data URIs and the rest -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        ("png;base64,aGVsbG8=", b"hello"),
        ("jpeg;charset=x;base64,aGVsbG8=", b"hello"),
        ("png;base64,aGVs\r\n bG8=\n", b"hello"),
        ("png;base64,aG!V-s_bG8=", b"hello"),
        ("png;base64,aGVsbG8=base64,", b"hello"),
        ("png;base64,", b""),
        ("png,aGVsbG8=", b""),
        ("", b""),
    ],
)
def test_data_uris(payload: str, data: bytes) -> None:
    assert fetch("data:image/" + payload) == [data]


@pytest.mark.parametrize("payload", ["aGVsbG8", "aGVsbG8=ä", "a", "ä", "aGVsbG\ud800="])
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


@pytest.mark.parametrize("content", ["/etc/hostname", "pyproject.toml", "DATA:image/png;base64,", "data:text/plain,x"])
def test_nothing_else_is_opened(content: str) -> None:
    assert "is not a local file, a valid url, or a base64-encoded image" in failure(content)
