"""One hop over TLS: names that are asked for, connections that are kept, and hosts that speak unasked."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.lib.image_host import ImageHost
from tests.support.certificates import certificate  # noqa: F401
from tests.support.fetch import PICTURE, FakeResolver
from tests.support.transport import body, transporting

NAME = "pictures.example.com"
FILES = {"a.jpg": PICTURE, "b.jpg": b"b", "c.jpg": b"c", "wrong": b"wrong" * 100}


def has_ipv6() -> bool:
    try:
        with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)):
            return True
    except OSError:
        return False


@pytest.fixture
def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def host(context: ssl.SSLContext) -> Iterator[ImageHost]:
    with ImageHost(FILES, tls=context) as host:
        yield host


@pytest.mark.parametrize("after", ["0", "0.001", "0.1", "0.1&pieces=1"])
def test_unsolicited_responses_are_discarded(host: ImageHost, certificate: Path, after: str) -> None:
    first = host.url(f"/second/a.jpg?then=wrong&after={after}", NAME)
    then = host.url("/ok/b.jpg?delay=0.03", NAME)

    async def one_after_the_other() -> list[bytes]:
        async with transporting(FakeResolver({NAME: "127.0.0.1"}), ca_file=str(certificate)) as transport:
            return [await body(transport, url) for url in (first, then, then, then, first, then)]

    assert asyncio.run(one_after_the_other()) == [PICTURE, b"b", b"b", b"b", PICTURE, b"b"]


@pytest.mark.parametrize("after", ["0.1", "0.1&pieces=1"])
def test_an_unsolicited_response_ends_the_reuse_of_connections(
    host: ImageHost,
    certificate: Path,
    after: str,
) -> None:
    async def one_after_the_other() -> list[bytes]:
        async with transporting(FakeResolver({NAME: "127.0.0.1"}), trial_s=0, ca_file=str(certificate)) as transport:
            spoken = await body(transport, host.url(f"/second/a.jpg?then=wrong&after={after}", NAME))
            # Its connection is shut down when it has spoken.
            assert await asyncio.to_thread(host.wait_for, "open_connections", 0)
            return [spoken, *[await body(transport, host.url("/ok/b.jpg", NAME)) for _ in range(3)]]

    assert asyncio.run(one_after_the_other()) == [PICTURE, b"b", b"b", b"b"]


def test_what_openssl_has_read_with_the_last_answer_is_no_answer_to_the_next_request(
    host: ImageHost,
    certificate: Path,
) -> None:
    """The host may have acknowledged that one before the answer is looked at: we are busy."""

    async def both() -> list[bytes]:
        async with transporting(FakeResolver({NAME: "127.0.0.1"}), trial_s=0, ca_file=str(certificate)) as transport:
            spoken = await body(transport, host.url("/double/c.jpg?then=wrong", NAME))
            return [spoken, await body(transport, host.url("/ok/b.jpg?delay=1", NAME))]

    assert asyncio.run(both()) == [b"c", b"b"]
    assert host.connections == 2


def test_connections_are_kept(host: ImageHost, certificate: Path) -> None:
    """The tickets that a host sends of its own accord are no answers."""

    async def one_after_the_other() -> None:
        async with transporting(FakeResolver({NAME: "127.0.0.1"}), trial_s=0, ca_file=str(certificate)) as transport:
            for _ in range(5):
                assert await body(transport, host.url("/ok/b.jpg", NAME)) == b"b"

    asyncio.run(one_after_the_other())
    assert host.connections == 1


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_name_with_an_ipv6_address_is_asked_for_by_name(context: ssl.SSLContext, certificate: Path) -> None:
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)

    async def get(host: ImageHost) -> bytes:
        names = FakeResolver({NAME: "::1"})
        async with transporting(names, "::1/128", ca_file=str(certificate)) as transport:
            return await body(transport, host.url("/ok/b.jpg", NAME))

    with ImageHost(FILES, tls=context, address="::1") as host:
        assert asyncio.run(get(host)) == b"b"
    assert asked == [NAME]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_is_no_name_to_ask_for() -> None:
    async def get(host: ImageHost) -> bytes:
        async with transporting(FakeResolver({}), "::1/128") as transport:
            return await body(transport, host.url("/ok/b.jpg"))

    with ImageHost(FILES, address="::1") as host:
        assert asyncio.run(get(host)) == b"b"
        assert [request.headers["host"] for request in host.requests] == [f"[::1]:{host.port}"]
