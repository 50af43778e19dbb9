"""What holds for every path: the token, HEAD, wrong methods, encodings, the form of errors, bodies that do not come."""

import contextlib
import http.client
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import msgpack
import pytest

from tests.support.ingress import request
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.metrics import scraped, wait_for
from tests.support.serve import Serve, sturdy_config

APP = "gated"
TOKEN = "s3cret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MEBIBYTE = 2**20
GRACE_S = 1.0


@pytest.fixture(scope="module")
def url(serve_instance: Serve) -> Iterator[str]:
    """Asks for a token, takes 4 MiB of bodies at a time, and has short timeouts."""
    limits = {"max_bytes_in_flight": 4 * MEBIBYTE, "body_grace_s": GRACE_S, "min_body_bytes_per_s": 1000}
    config = sturdy_config(name=APP, replicas=1, **limits)
    config["deployments"][0]["ray_actor_options"] |= {"runtime_env": {"env_vars": {"MARQO_INFERENCE_TOKEN": TOKEN}}}
    serve_instance.deploy(config)
    yield f"{serve_instance.url}/{APP}"
    serve_instance.deploy()


def detail(reply: httpx.Response) -> str:
    body = msgpack.unpackb(reply.content) if reply.headers["content-type"] == MSGPACK else reply.json()
    assert list(body) == ["detail"]
    assert isinstance(body["detail"], str)
    return body["detail"]


# --- The token ---

GUARDED = [
    "/models",
    "/models/",
    "/docs",
    "/openapi.json",
    "/redoc",
    "/vectorise",
    "/nothing",
    "/healthz/",
    "//",
    "/healthz/../models",
]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_the_token_guards_every_path_and_method(url: str, path: str, method: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        reply = httpx.request(method, url + path, headers=headers)
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert httpx.request(method, url + path, headers=BEARER).status_code != 401


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_anybody_may_ask_who_is_there_but_do_nothing_else(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 200
    assert httpx.head(url + path).status_code == 200
    assert httpx.post(url + path).status_code == 401
    assert httpx.delete(url + path).status_code == 401


def test_a_refusal_has_the_form_that_was_asked_for(url: str) -> None:
    for headers, kind in (({}, "application/json"), ({"Accept": MSGPACK}, MSGPACK)):
        reply = httpx.get(url + "/models", headers=headers)
        assert (reply.status_code, reply.headers["content-type"]) == (401, kind)
        assert "bearer token" in detail(reply)
        assert TOKEN not in reply.text


def test_with_the_token_all_is_as_without_one(url: str) -> None:
    client = MarqoClient(url, token=TOKEN)
    client.embed(["a red circle"])
    assert client.get("/models").status_code == 200
    assert client.delete("/models?model_name=nobody").status_code == 200


# --- HEAD, and other methods ---


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/models", "/models?detailed=true", "/nothing", "/models?detailed=x"]
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
    assert marqo.post(msgpack.packb(request(["a"])), headers).status_code == 200


# --- Names that are URLs ---


@pytest.mark.parametrize("query", ["", "?detailed=false", "?detailed=true", "?detailed=true&replicas=true"])
def test_models_whose_names_are_urls_are_listed_without_credentials(marqo: MarqoClient, query: str) -> None:
    name = "https://me:hunter2@models.example/named.pt?X-Amz-Signature=hunter3"
    places = {
        "modelLocation": {"s3": {"Bucket": "b", "Key": "k.pt?X-Amz-Signature=hunter4"}},
        "notes": [{name: ["see s3://me:hunter5@bucket/key?token=hunter6 for it"]}],
    }
    properties = {"name": name, "type": "random", "dimensions": 3, **places}
    marqo.embed(["a"], model=name, properties=properties)
    reply = marqo.get("/models" + query)
    assert "https://models.example/named.pt" in reply.text
    assert "hunter" not in reply.text
    key = next(
        line.get("modelName", line.get("model_name"))
        for line in reply.json()["models"]
        if "models.example/named.pt" in str(line)
    )
    # By the name that is shown it can be ejected, too.
    assert httpx.delete(marqo.url + "/models", params={"model_name": key}).status_code == 200
    assert "named.pt" not in marqo.get("/models" + query).text


# --- Bodies that do not come ---


def started(url: str, sent: int, length: int, **headers: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    connection.putrequest("POST", parts.path + "/vectorise")
    for name, value in {"Content-Type": MSGPACK, "Content-Length": str(length), **BEARER, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(bytes(sent))
    return connection


def held() -> float:
    return scraped("marqo_in_flight", application=APP, what="bytes of requests")


def test_a_body_that_stalls_is_a_408(url: str) -> None:
    before = time.monotonic()
    with contextlib.closing(started(url, MEBIBYTE, 2 * MEBIBYTE)) as connection:
        reply = connection.getresponse()
        assert reply.status == 408
        assert "too slowly" in json.loads(reply.read())["detail"]
        assert time.monotonic() - before < GRACE_S + 8


def test_bodies_that_lack_their_last_byte_keep_nobody_out(url: str) -> None:
    client = MarqoClient(url, token=TOKEN)
    large = msgpack.packb(request(["a" * 900_000]))
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(contextlib.closing(started(url, 2 * MEBIBYTE - 1, 2 * MEBIBYTE)))
        waits = []
        for _ in range(10):
            before = time.monotonic()
            client.embed(["a search"], useInferenceCache=True)
            assert client.post(large).status_code == 200
            waits.append(time.monotonic() - before)
    assert sorted(waits)[5] < 2
    wait_for(lambda: held() == 0, "that nothing is held any more")


@pytest.mark.parametrize(
    ("headers", "status"), [({"Authorization": "Bearer wrong"}, 401), ({"Content-Type": "text/plain"}, 415)]
)
def test_a_refused_body_that_does_not_end_is_answered(url: str, headers: dict[str, str], status: int) -> None:
    with contextlib.closing(started(url, 600_000, 100 * MEBIBYTE, **headers)) as connection:
        reply = connection.getresponse()
        assert reply.status == status
        assert json.loads(reply.read())["detail"]


def test_who_is_refused_reads_why_when_all_is_sent(url: str) -> None:
    client = MarqoClient(url, token="wrong")
    reply = client.post(bytes(3 * MEBIBYTE))
    assert reply.status_code == 401
    assert "bearer token" in detail(reply)
