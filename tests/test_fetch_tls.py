"""Downloads over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from fetch_parts import DOWNLOAD, PICTURE, Names, failure, fetch, host, server  # noqa: F401
from image_host import ImageHost


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
