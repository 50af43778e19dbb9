"""Contents that fail, over HTTP and through the whole graph: docs/protocol.md, section 3."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from tests.support.ingress import PREAMBLE, data_uri, is_error, vectors
from tests.support.marqo_client import MarqoClient

# (content or path at the image host, what its message contains): section 3.4
FAILURES = {
    "404": ("/ok/nothing.jpg", "returned 404"),
    "403": ("/status/403", "returned 403"),
    "204": ("/status/204", "returned 204"),
    "500": ("/status/500", "returned 500"),
    "html": ("/html", "/html`: it is an HTML page; "),
    "empty": ("/empty", "/empty`: it is empty (0 bytes); "),
    "svg": ("/ok/a.svg", "a.svg`: it is an SVG drawing, "),
    "truncated": ("/ok/cut.jpg", "Image file is truncated"),
    "reset": ("/reset", "error when downloading the media url"),
    "cut off": ("/cut", "error when downloading the media url"),
    "redirects": ("/redirect/11", "redirects"),
    "timeout": ("/hang", "error when downloading the media url"),
    "too slow": ("/drip", "error when downloading the media url"),
    "truncated data": (data_uri(jpeg(photo(1, 200, 150))[:3000], "jpeg"), "Image file is truncated"),
    "bad base64": ("data:image/png;base64,abcde", "Invalid base64 data"),
    "not ascii": ("data:image/png;base64,äöü=", "Invalid base64 data"),
    "no base64": ("data:image/png,abcd", "cannot identify image file"),
    "no picture": (data_uri(b"hello"), "cannot identify image file"),
    "compressed data": (data_uri(gzip.compress(b"<svg/>")), "it is an SVG drawing, compressed"),
    "word": ("invalid", "is not a local file, a valid url, or a base64-encoded image"),
    "blank": ("", "is not a local file, a valid url, or a base64-encoded image"),
    "local": ("{here}", "is not a local file, a valid url, or a base64-encoded image"),
    "file url": ("file://{here}", "over http and https"),
    "bucket": ("s3://bucket/a.jpg", "is not a local file, a valid url, or a base64-encoded image"),
    "one label": ("http://localhost/a.jpg", "is not a local file, a valid url, or a base64-encoded image"),
    "ftp": ("ftp://example.com/a.jpg", "over http and https"),
    "private": ("http://10.0.0.1/a.jpg", "not publicly routable"),
    "metadata": ("http://169.254.169.254/latest/meta-data/", "not publicly routable"),
    "private v6": ("http://[fd00::1]/a.jpg", "not publicly routable"),
    "redirected": ("/redirect-to?url=http://10.0.0.1/a.jpg", "not publicly routable"),
    "refused": ("http://127.0.0.1:1/a.jpg", "error when downloading the media url"),
}
QUICK = {"downloadTimeoutMs": 800}
TOGETHER = {"downloadTimeoutMs": 3000}
"""For good pictures beside failures, which share two cores with them."""


@pytest.fixture(scope="module")
def failing(image_host: ImageHost, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The contents of FAILURES. The local one is a real picture on the server's disk, which must stay there."""
    local = tmp_path_factory.mktemp("private") / "picture.jpg"
    local.write_bytes(image_host.files["0.jpg"])
    contents = {kind: image_host.url(what) if what.startswith("/") else what for kind, (what, _) in FAILURES.items()}
    return {kind: content.replace("{here}", str(local)) for kind, content in contents.items()}


def test_every_failure_is_its_contents_own(marqo: MarqoClient, image_host: ImageHost, failing: dict[str, str]) -> None:
    """All of them in one request, among good pictures, whose vectors stay what they are alone."""
    good = image_host.url("/ok/8.jpg")
    contents = [content for kind in FAILURES for content in (good, failing[kind])]
    results = marqo.results(contents, "image", preprocessing=TOGETHER)
    alone = vectors(marqo.results([good], "image"))[0]
    for kind, picture, failure in zip(FAILURES, results[::2], results[1::2], strict=True):
        ((key, vector),) = picture
        assert key == good
        np.testing.assert_allclose(vector, alone, atol=1e-5)
        assert is_error(failure), kind
        assert FAILURES[kind][1] in failure["error_message"], kind
        assert len(failure["error_message"]) < 1000


@pytest.mark.parametrize("kind", FAILURES)
def test_without_individual_errors_one_fails_all(
    marqo: MarqoClient, image_host: ImageHost, failing: dict[str, str], kind: str
) -> None:
    contents = [image_host.url("/ok/1.jpg"), failing[kind], image_host.url("/ok/2.jpg")]
    status, body = marqo.vectorise(contents, "image", preprocessing=QUICK, returnIndividualError=False)
    assert status == 400
    assert body["detail"].startswith(PREAMBLE)
    assert FAILURES[kind][1] in body["detail"]


def test_only_failures_is_still_a_200(marqo: MarqoClient, image_host: ImageHost) -> None:
    results = marqo.results(["invalid", image_host.url("/html"), "invalid"] * 10, "image")
    assert all(map(is_error, results))


def test_an_individual_error_names_its_content(marqo: MarqoClient, image_host: ImageHost) -> None:
    url = image_host.url("/status/410")
    (item,) = marqo.results([url], "image")
    assert f"`{url}`" in item["error_message"]
