"""Downloads reach public addresses only, whatever a URL, a name or a redirect says."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.fetch.fetcher import ALLOWED_NETWORKS, ALLOWED_NETWORKS_VARIABLE, FetchOptions, FetchSettings
from embedding.fetch.guard import SystemResolver
from embedding.models.files.options import LoadOptions
from tests.support.fetch import FakeResolver, failure, failure_of, fetching, host, server  # noqa: F401

REMEDY = "list it in `preprocessor.fetch.allowed_networks` (or MARQO_MEDIA_DOWNLOAD_ALLOWED_NETWORKS, which counts"


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
    assert REMEDY in message
    assert "secret" not in message
    assert not host.connections


LOOPBACK = """
2130706433 0x7f000001 0x7f.0.0.1 0177.0.0.1 017700000001 127.1 127.0.0.1. 0 [::] localhost １２７.0.0.1
①②⑦.0.0.1 127。0。0。1 127.0.0.1%00 127.0.0.1%2f.example.com %31%32%37.0.0.1
"""


@pytest.mark.parametrize("netloc", LOOPBACK.split())
def test_no_spelling_reaches_loopback(host: ImageHost, netloc: str) -> None:
    """Rejected as a URL or by the guard: either way there is no connection."""
    failure(host.url("/ok/b.jpg", netloc), allowed_networks="")
    assert not host.connections


class NamesOrSystem(FakeResolver):
    """Unknown names go to the system, which takes `0x7f.1` and its like for addresses."""

    async def resolve(self, host: str, port: int) -> list[str]:
        if host in self.names:
            return await super().resolve(host, port)
        resolver = SystemResolver(1)
        try:
            return await resolver.resolve(host, port)
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
    names = FakeResolver({"rebind.example.com": addresses})
    url = host.url("/ok/b.jpg", "rebind.example.com")
    message = failure(url, allowed_networks="", resolver=names)
    assert f"`{url}`" in message
    assert "`rebind.example.com` resolved to an address that is not publicly routable" in message
    assert REMEDY in message
    assert "127.0.0.1" not in message
    assert not host.connections


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2/", "http://[::1]/", "http://inside.example.com/", "//169.254.169.254/"]
)
def test_every_hop_is_checked(host: ImageHost, target: str) -> None:
    names = FakeResolver({"inside.example.com": "10.0.0.1"})
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


def test_dns_rebinding_is_refused(host: ImageHost) -> None:
    """The first answer of the DNS is allowed, the next one is not."""
    names = FakeResolver({"rebind.example.com": "127.0.0.1"})

    async def rebind() -> str:
        async with fetching(names, allowed_networks="127.0.0.1/32", dns_cache_s=0) as fetcher:
            url = host.url("/close/b.jpg", "rebind.example.com")
            assert await fetcher.fetch(url, FetchOptions()) == b"b"
            names.names["rebind.example.com"] = "127.0.0.2"
            return await failure_of(fetcher, url)

    assert "not publicly routable" in asyncio.run(rebind())
    assert len(host.requests) == 1


def test_a_bad_network_is_told_at_once_with_the_name_of_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"^{ALLOWED_NETWORKS}: `10.0.0.0/99`"):
        FetchSettings(allowed_networks="10.0.0.0/99")
    with pytest.raises(ValueError, match=r"encoder\.models\.allowed_networks: `10.0.0.0/99`"):
        LoadOptions(allowed_networks="10.0.0.0/99")
    monkeypatch.setenv(ALLOWED_NETWORKS_VARIABLE, "10.0.0.0/99")
    assert FetchSettings(allowed_networks="10.0.0.0/8").allowed_networks == "10.0.0.0/8"
    with pytest.raises(ValueError, match=f"^{ALLOWED_NETWORKS_VARIABLE}: `10.0.0.0/99`"):
        FetchSettings()
