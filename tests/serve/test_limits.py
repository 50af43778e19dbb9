"""An application with low limits and a token: what it takes at a time, what it refuses, and how soon."""

import contextlib
import http.client
import json
import select
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgpack
import numpy as np
import psutil
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from deployments.ray_internals import by_reference, for_this_thread
from embedding.errors import RequestError
from tests.support.browser import Browser
from tests.support.ingress import SMALL, busy_with, detail, drawn, is_error, request, vectors
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import Serve, replica_pids, sturdy_config
from tests.support.waiting import until

APP = "limits"
TOKEN = "s3cret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MEBIBYTE = 2**20
ITEMS, BYTES, CHARS = 8, 4 * MEBIBYTE, 600_000
GRACE_S = 2.5
SEARCH = {"useInferenceCache": True}


@pytest.fixture(scope="module")
def url(serve_instance: Serve) -> Iterator[str]:
    limits = {
        "max_items_in_flight": ITEMS,
        "max_searches_in_flight": ITEMS // 2,
        "max_downloads_in_flight": 0,
        "max_contents": ITEMS,
        "max_body_bytes": BYTES,
        "max_bytes_in_flight": BYTES,
        "max_text_chars": CHARS,
        "min_body_bytes_per_s": 1000,
        "body_grace_s": GRACE_S,
    }
    config = sturdy_config(name=APP, replicas=1, **limits)
    config["deployments"][0]["ray_actor_options"] |= {"runtime_env": {"env_vars": {"MARQO_INFERENCE_TOKEN": TOKEN}}}
    yield serve_instance.add(config)
    serve_instance.remove(APP)


@pytest.fixture(scope="module")
def client(url: str) -> MarqoClient:
    client = MarqoClient(url, token=TOKEN)
    client.embed(["warm"])
    return client


@pytest.fixture(scope="module")
def by_handle(url: str) -> DeploymentHandle[Any]:
    return by_reference(for_this_thread(serve.get_app_handle(APP)))


def assert_answered(client: MarqoClient, text: str = "one more", **members: Any) -> None:
    ((key, vector),) = client.results([text], **members)[0]
    assert key == text
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


def refusal(client: MarqoClient, text: str, **members: Any) -> str:
    """The message of a 503, which says when to come again."""
    reply = client.post(msgpack.packb(request([text], **members)))
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    return detail(reply)


# --- Items ---


@contextlib.contextmanager
def busy(client: MarqoClient, **members: Any) -> Iterator[None]:
    """As many items as the limit allows are in flight while the context lasts. What is answered within it did not wait
    for them."""
    with ImageHost({"a.jpg": jpeg(photo(1, 90, 60))}) as host, ThreadPoolExecutor(1) as pool:
        urls = [host.url(f"/held/a.jpg?{i}") for i in range(ITEMS)]
        held = pool.submit(client.results, urls, "image", preprocessing={"downloadTimeoutMs": 60_000}, **members)
        try:
            until(lambda: host.in_flight == ITEMS)
            yield
            assert not held.done()
        finally:
            host.release()
        assert not any(map(is_error, held.result()))


def test_indexing_does_not_block_searches(client: MarqoClient) -> None:
    with busy(client):
        assert "busy with 8 contents and" in refusal(client, "one more")
        assert_answered(client, "a search", **SEARCH)
    assert_answered(client)


def test_searches_do_not_block_indexing(client: MarqoClient) -> None:
    with busy(client, **SEARCH):
        assert "busy with 8 contents of searches" in refusal(client, "a search", **SEARCH)
        assert_answered(client)
    assert_answered(client, "a search", **SEARCH)


def test_hundreds_of_refusals_at_once_are_prompt(client: MarqoClient) -> None:
    """More requests than Serve's own limit on ongoing ones used to be: those beyond it hung."""
    with busy(client), ThreadPoolExecutor(64) as pool:
        details = list(pool.map(lambda _: refusal(client, "one more"), range(300)))
    assert all("busy with 8 contents and" in one for one in details)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [(["a"] * (ITEMS + 1), "contents: 9 items"), (["a" * (BYTES + 1)], f"larger than {BYTES} bytes")],
    ids=["contents", "bytes"],
)
def test_a_request_that_is_too_large(client: MarqoClient, contents: list[str], reason: str) -> None:
    status, body = client.vectorise(contents)
    assert status == 413
    assert reason in body["detail"]
    assert "send several requests" in body["detail"]
    assert_answered(client)


def test_a_text_that_is_too_long_is_its_own_error(client: MarqoClient) -> None:
    short, long = client.results(["short", "a" * (CHARS + 1)])
    ((key, _),) = short
    assert key == "short"
    assert f"a text of {CHARS + 1} characters" in long["error_message"]


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
    "/stats",
    "/ui/similarity",
    "/ui/",
]


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_the_token_guards_every_path_and_method(url: str, path: str, method: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        reply = httpx.request(method, url + path, headers=headers)
        assert reply.status_code == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in reply.text
    status = httpx.request(method, url + path, headers=BEARER).status_code
    assert status != 401
    assert status < 500


@pytest.mark.parametrize("path", ["/", "/healthz", "/ui"])
def test_root_healthz_and_the_page_need_no_token_for_get_and_head(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 200
    assert httpx.head(url + path).status_code == 200
    assert httpx.post(url + path).status_code == 401
    assert httpx.delete(url + path).status_code == 401


def test_the_page_asks_for_the_token(client: MarqoClient, url: str, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        browser.show(f"{url}/ui")
        browser.until("!document.querySelector('#token-form').hidden")
        assert browser.value("document.querySelector('#main').hidden")
        for token, shown in (("wrong", "does not take this token"), (TOKEN, "Preprocessor")):
            enter = f"document.querySelector('#token').value = {json.dumps(token)};"
            browser.value(f"{enter} document.querySelector('#token-form button').click()")
            browser.until(f"document.body.innerText.includes({json.dumps(shown)})")
        assert browser.value("document.querySelector('#token-form').hidden")
        assert not any(TOKEN in asked for asked in browser.requested)


def test_a_refusal_has_the_form_that_was_asked_for(url: str) -> None:
    for headers, kind in (({}, "application/json"), ({"Accept": MSGPACK}, MSGPACK)):
        reply = httpx.get(url + "/models", headers=headers)
        assert (reply.status_code, reply.headers["content-type"]) == (401, kind)
        assert "bearer token" in detail(reply)
        assert TOKEN not in reply.text


def test_with_the_token_all_is_as_without_one(client: MarqoClient) -> None:
    assert_answered(client, "a red circle")
    assert "demo/clip" in [line["model_name"] for line in client.get("/models").json()["models"]]
    assert client.delete("/models?model_name=nobody").json()["result"] == "success"


# --- Bodies ---


def started(url: str, sent: int, length: int, **headers: str) -> http.client.HTTPConnection:
    """A request whose body lacks its end. HAProxy would give it up later than the connection's timeout."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=25)
    connection.putrequest("POST", parts.path + "/vectorise")
    for name, value in {"Content-Type": MSGPACK, "Content-Length": str(length), **BEARER, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders(bytes(sent))
    return connection


def answer(connection: http.client.HTTPConnection) -> tuple[int, str]:
    """Status and detail."""
    reply = connection.getresponse()
    body = json.loads(reply.read())
    assert list(body) == ["detail"]
    return reply.status, body["detail"]


def unanswered(connections: list[http.client.HTTPConnection]) -> int:
    readable = select.poll()
    for connection in connections:
        readable.register(connection.sock, select.POLLIN)
    return len(connections) - len(readable.poll(0))


def held(by_handle: DeploymentHandle[Any]) -> int:
    """Bytes of requests that the ingress holds: how many it names when it refuses a call that needs all of its room.
    If it holds none it takes the call, whose text is too long then."""
    try:
        by_handle.vectorise.remote(request(["x" * BYTES], returnIndividualError=True)).result(timeout_s=60)
    except RequestError as refused:
        return busy_with(refused.message, "bytes of requests")
    return 0


def test_hundreds_of_requests_wait_together(client: MarqoClient, url: str) -> None:
    """Serve itself would let all beyond `max_ongoing_requests` wait, without end and without a word. The bodies are
    larger than what HAProxy keeps back."""
    ingress = psutil.Process(*replica_pids("Ingress", APP))
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(contextlib.closing(started(url, 300_000, MEBIBYTE))) for _ in range(300)]
        until(lambda: len(ingress.net_connections("tcp")) > 200)
        assert_answered(client)
        assert unanswered(waiting) > 200


def test_bodies_are_counted_as_they_arrive_and_a_stalled_one_gives_way(
    client: MarqoClient, url: str, by_handle: DeploymentHandle[Any]
) -> None:
    until(lambda: held(by_handle) == 0)
    with contextlib.closing(started(url, 3_500_000, BYTES)) as stalled:
        until(lambda: held(by_handle) == 3_500_000)
        for _ in range(10):
            assert_answered(client, "a" * 500_000)
        assert held(by_handle) == 0
        status, message = answer(stalled)
    assert status == 503
    assert "bytes of requests that are not complete" in message


def test_a_refused_body_is_read_on_and_holds_nothing(
    client: MarqoClient, url: str, by_handle: DeploymentHandle[Any]
) -> None:
    """Two bodies of which one fits: the larger one is refused, and answered when it is complete."""
    until(lambda: held(by_handle) == 0)
    with (
        contextlib.closing(started(url, 3_500_000, BYTES)) as larger,
        contextlib.ExitStack() as stack,
    ):
        until(lambda: held(by_handle) == 3_500_000)
        smaller = stack.enter_context(contextlib.closing(started(url, 3_000_000, BYTES)))
        until(lambda: held(by_handle) == 3_000_000)
        assert unanswered([larger, smaller]) == 2
        larger.send(bytes(BYTES - 3_500_000))
        status, message = answer(larger)
        assert status == 503
        assert "bytes of requests that are not complete" in message
        smaller.send(bytes(BYTES - 3_000_000))
        status, message = answer(smaller)
        assert status == 400  # zeros are no request
        assert "MessagePack" in message
    assert held(by_handle) == 0


def test_a_body_that_stalls_is_a_408(url: str) -> None:
    with contextlib.closing(started(url, MEBIBYTE, 2 * MEBIBYTE)) as connection:
        status, message = answer(connection)
    assert status == 408
    assert "too slowly" in message


def test_bodies_that_lack_their_last_byte_keep_nobody_out(
    client: MarqoClient, url: str, by_handle: DeploymentHandle[Any]
) -> None:
    large = ["a" * 450_000, "b" * 450_000]
    with contextlib.ExitStack() as stack:
        bodies = [
            stack.enter_context(contextlib.closing(started(url, 2 * MEBIBYTE - 1, 2 * MEBIBYTE))) for _ in range(8)
        ]
        until(lambda: held(by_handle) > 0)
        waits = []
        for _ in range(10):
            before = time.monotonic()
            assert_answered(client, "a search", **SEARCH)
            np.testing.assert_array_equal(vectors(client.results(large, properties=SMALL)), drawn(large))
            waits.append(time.monotonic() - before)
        statuses = {answer(body)[0] for body in bodies}
    # Who waited for the others' bodies would have waited until they are given up.
    assert max(waits) < GRACE_S
    assert statuses <= {408, 503}
    assert held(by_handle) == 0


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"Authorization": "Bearer wrong"}, 401, "bearer token"),
        ({"Content-Type": "text/plain"}, 415, "Unsupported Content-Type"),
    ],
)
def test_a_refused_body_that_does_not_end_is_answered(
    url: str, headers: dict[str, str], status: int, reason: str
) -> None:
    with contextlib.closing(started(url, 600_000, 100 * MEBIBYTE, **headers)) as connection:
        given, message = answer(connection)
    assert given == status
    assert reason in message


def test_who_is_refused_reads_why_when_all_is_sent(url: str) -> None:
    reply = MarqoClient(url, token="wrong").post(bytes(3 * MEBIBYTE))
    assert reply.status_code == 401
    assert "bearer token" in detail(reply)
