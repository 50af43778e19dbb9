"""What is sent along with a download: docs/protocol.md, section 4.3."""

from __future__ import annotations

import base64

import pytest

from benchmarks.lib.image_host import ImageHost
from tests.support.fetch import DOWNLOAD, PICTURE, failure, fetch, host, server  # noqa: F401


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
    assert fetch(host.url("/ok/b.jpg"), host.url("/ok/a.jpg"), headers=bad, trial_s=0) == [b"b", PICTURE]
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
