"""Downloads over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from benchmarks.lib.image_host import ImageHost
from tests.support.certificates import certificate  # noqa: F401
from tests.support.fetch import DOWNLOAD, PICTURE, FakeResolver, failure, fetch, host, server  # noqa: F401


def test_tls_is_verified(certificate: Path) -> None:
    names = FakeResolver({"pictures.example.com": "127.0.0.1", "other.example.com": "127.0.0.1"})
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
