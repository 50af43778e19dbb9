"""config/tls.cfg ends TLS in front of the server: clients check its certificate, and get the same vectors."""

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgpack
import numpy as np
import pytest

from benchmarks.lib.cluster import beside_marqo
from benchmarks.lib.known_answers import TOLERANCE
from benchmarks.lib.places import ROOT
from benchmarks.lib.process import free_port, haproxy_binary, is_listening
from benchmarks.lib.target import registered
from tests.support.certificates import certificate
from tests.support.marqo_client import MarqoClient
from tests.support.waiting import until

__all__ = ["certificate"]

NAME = "pictures.example.com"
"""Of the certificate."""


@pytest.fixture
def front_door(marqo: MarqoClient) -> str:
    return urlsplit(marqo.url).netloc


@pytest.fixture
def port(certificate: Path, front_door: str) -> Iterator[int]:
    """Where HAProxy listens with that config."""
    port = free_port()
    variables = {
        "MARQO_TLS": f"127.0.0.1:{port}",
        "MARQO_TLS_CERTIFICATE": str(certificate),
        "MARQO_FRONT_DOOR": front_door,
    }
    process = subprocess.Popen(
        [haproxy_binary(), "-db", "-f", ROOT / "config" / "tls.cfg"],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    try:
        until(lambda: is_listening(port))
        yield port
    finally:
        process.kill()
        process.wait()


def trusting(certificate: Path) -> ssl.SSLContext:
    """A client's context that trusts this certificate and no other."""
    return ssl.create_default_context(cafile=certificate)


def test_vectors_come_over_tls(port: int, certificate: Path, marqo: MarqoClient) -> None:
    target = registered(f"https://127.0.0.1:{port}", "demo/clip", "language")
    with httpx.Client(verify=trusting(certificate), timeout=60, trust_env=False) as client:
        for text in ("a red circle", "a blue star"):
            reply = client.post(
                target.url,
                content=target.pack([text]),
                headers={**target.headers, "Host": NAME},
                extensions={"sni_hostname": NAME},
            )
            assert reply.status_code == 200
            assert np.abs(target.unpack(reply.content) - marqo.embed([text])).max() < TOLERANCE


def test_a_haproxy_beside_marqo_asks_by_tls(port: int, certificate: Path, marqo: MarqoClient) -> None:
    gone = f"127.0.0.1:{free_port()}"
    server = f"127.0.0.1:{port} ssl verify required ca-file {certificate}"
    with beside_marqo(gone, f"{server} verifyhost {NAME}") as url:
        assert np.abs(MarqoClient(url).embed(["a red circle"]) - marqo.embed(["a red circle"])).max() < TOLERANCE


def test_a_client_that_does_not_trust_the_certificate_sends_nothing(port: int, certificate: Path) -> None:
    url = f"https://127.0.0.1:{port}/healthz"
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        client.get(url, extensions={"sni_hostname": NAME})
    with (
        httpx.Client(verify=trusting(certificate), trust_env=False) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get(url, extensions={"sni_hostname": "other.example.com"})


def test_neither_old_tls_nor_plain_http_is_spoken(port: int, certificate: Path) -> None:
    old = trusting(certificate)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with httpx.Client(verify=old, trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get(f"https://127.0.0.1:{port}/healthz", extensions={"sni_hostname": NAME})
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get(f"http://127.0.0.1:{port}/healthz")


class TestWithoutAServer:
    """Nobody listens behind HAProxy."""

    @pytest.fixture
    def front_door(self) -> str:
        return f"127.0.0.1:{free_port()}"

    def test_the_answer_is_a_503_that_marqo_reads(self, port: int, certificate: Path) -> None:
        with httpx.Client(verify=trusting(certificate), trust_env=False, timeout=30) as client:
            reply = client.get(f"https://127.0.0.1:{port}/healthz", extensions={"sni_hostname": NAME})
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        assert "no inference server can be reached" in msgpack.unpackb(reply.content)["detail"]
