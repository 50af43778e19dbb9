"""What holds for every path: HEAD, wrong methods, encodings, headers of any bytes, the form of errors."""

import httpx
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from tests.support.ingress import detail, drawn, request, vectors
from tests.support.marqo_client import MSGPACK, MarqoClient

# --- HEAD, and other methods ---


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/ui", "/models", "/models?detailed=true", "/nothing", "/models?detailed=x"]
)
def test_head_is_get_without_a_body(marqo: MarqoClient, path: str) -> None:
    marqo.embed(["a"])
    got, head = httpx.get(marqo.url + path), httpx.head(marqo.url + path)
    assert head.status_code == got.status_code
    assert head.content == b""
    for name in ("content-type", "content-length"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/", {"GET", "HEAD"}),
        ("DELETE", "/healthz", {"GET", "HEAD"}),
        ("POST", "/models", {"GET", "HEAD", "DELETE"}),
        ("POST", "/stats", {"GET", "HEAD"}),
        ("GET", "/ui/similarity", {"POST"}),
        ("GET", "/vectorise", {"POST"}),
        ("HEAD", "/vectorise", {"POST"}),
        ("PUT", "/vectorise", {"POST"}),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", MSGPACK])
def test_a_wrong_method_is_a_405_that_names_the_right_ones(
    marqo: MarqoClient, method: str, path: str, allowed: set[str], accept: str
) -> None:
    reply = httpx.request(method, marqo.url + path, headers={"Accept": accept})
    assert (reply.status_code, reply.headers["content-type"]) == (405, accept)
    assert set(reply.headers["allow"].split(", ")) == allowed
    if method != "HEAD":
        assert all(one in detail(reply) for one in allowed)


@pytest.mark.parametrize("accept", ["application/json", MSGPACK])
def test_unknown_paths_and_bad_queries_have_the_same_form(marqo: MarqoClient, accept: str) -> None:
    for path, status in (("/nothing", 404), ("/models?detailed=perhaps", 422)):
        reply = httpx.get(marqo.url + path, headers={"Accept": accept})
        assert (reply.status_code, reply.headers["content-type"]) == (status, accept)
        assert detail(reply)


@pytest.mark.parametrize("name", ["x-request-id", "x-session-id", "serve_multiplexed_model_id", "traceparent"])
def test_headers_that_serve_reads_may_hold_anything(marqo: MarqoClient, name: str) -> None:
    """Serve decodes them before our own code runs, and answers in plain text where they are not UTF-8."""
    reply = httpx.get(marqo.url + "/", headers=[(name.encode(), b"\xff\xfe")])
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")


def test_a_method_that_is_none_is_a_405(marqo: MarqoClient) -> None:
    reply = httpx.request("SHOUT", marqo.url + "/", headers={"Accept": MSGPACK})
    assert (reply.status_code, reply.headers["content-type"]) == (405, MSGPACK)
    assert "OPTIONS" in detail(reply)


# --- Encodings ---


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "zstd", "GZIP"])
def test_an_encoded_body_is_a_415_that_names_the_encoding(marqo: MarqoClient, encoding: str) -> None:
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "Content-Encoding": encoding}
    reply = marqo.post(msgpack.packb(request(["a"])), headers)
    assert reply.status_code == 415
    assert encoding in detail(reply)


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_identity_is_no_encoding(marqo: MarqoClient, encoding: str) -> None:
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "Content-Encoding": encoding}
    reply = marqo.post(msgpack.packb(request(["a"])), headers)
    assert reply.status_code == 200
    results = msgpack.unpackb(reply.content, object_hook=msgpack_numpy.decode)["result"]
    np.testing.assert_array_equal(vectors(results), drawn(["a"]))
