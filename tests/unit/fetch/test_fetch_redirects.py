"""Downloads that are sent elsewhere, and what they take along."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from benchmarks.lib.image_host import SMALL_BODY, ImageHost
from tests.support.fetch import DOWNLOAD, FakeResolver, failure, fetch, host, server  # noqa: F401


def test_ten_redirects_and_no_more(host: ImageHost) -> None:
    assert fetch(host.url("/redirect/10"), trial_s=0) == [SMALL_BODY]
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
        names = FakeResolver({"other.example.com": "127.0.0.1"})
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


def test_a_path_of_two_slashes_stays_with_its_host(host: ImageHost) -> None:
    """Neither the request nor what goes along reaches the host that the path seems to name."""
    with ImageHost({"b.jpg": b"b"}, address="127.0.0.2") as other:
        path = f"//{other.address}:{other.port}/.x/ok/b.jpg"
        for url in (
            host.url(path, "user:secret@127.0.0.1"),
            host.url(f"/redirect-to?url={quote('/.' + path)}", "user:secret@127.0.0.1"),
        ):
            assert failure(url, headers={"X-Token": "t"}).endswith("returned 404")
        assert not other.connections
    assert [request.path for request in host.requests if "redirect" not in request.path] == [path, path]
