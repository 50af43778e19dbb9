"""How much one ingress takes at a time, and what the others are told: at once, and cheaply."""

import contextlib
import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import msgpack
import pytest

from benchmarks.lib.image_host import ImageHost
from deployments.ingress.admission import Admission, Load, of_items
from embedding.errors import Fault, RequestError
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.metrics import scraped, wait_for
from tests.support.serve import Serve, sturdy_config
from tests.support.waiting import until

MEBIBYTE = 2**20
GRACE_S = 25


def test_shares_are_counted_and_given_back() -> None:
    admission = Admission(10, "contents")
    with admission.share() as first:
        first.add(6)
        with admission.share() as second:
            second.add(4)
            assert admission.held == 10
            with pytest.raises(RequestError) as refused:
                second.add(1)
            assert refused.value.fault is Fault.OVERLOADED
            assert "busy with 10 contents" in refused.value.message
        assert admission.held == 6
    assert admission.held == 0


def test_what_is_larger_than_all_is_taken_alone() -> None:
    admission = Admission(10, "contents")
    with admission.share() as alone, admission.share() as other:
        alone.add(8)
        alone.add(8)
        with pytest.raises(RequestError):
            other.add(1)
    with admission.share() as other:
        other.add(1)


def test_a_failure_gives_the_share_back() -> None:
    admission = Admission(10, "contents")
    with contextlib.suppress(ZeroDivisionError), admission.share() as share:
        share.add(10)
        raise ZeroDivisionError
    assert admission.held == 0


@contextlib.contextmanager
def loaded(work: Admission, downloads: Admission) -> Iterator[Load]:
    with work.share() as mine, downloads.share() as waiting, Admission(1, "bytes").share() as expanded:
        yield Load(mine, waiting, expanded)


def test_what_waits_is_no_work_and_what_arrives_is() -> None:
    work, downloads = of_items(128, "contents", 16), of_items(1024, "waiting contents", 16)
    with loaded(work, downloads) as first, loaded(work, downloads) as second:
        first.admit(100)
        with pytest.raises(RequestError):
            second.admit(100)
        first.change(working=10, waiting=90)
        assert (work.held, downloads.held) == (10, 90)
        second.admit(100)
        # Over the limit, since nothing that has arrived can be refused.
        first.change(working=100, waiting=0)
        assert (work.held, downloads.held) == (200, 0)
        with loaded(work, downloads) as third, pytest.raises(RequestError):
            third.admit(1)
    assert (work.held, downloads.held) == (0, 0)


def test_what_finds_no_room_to_wait_stays_work() -> None:
    work, downloads = of_items(128, "contents", 16), of_items(50, "waiting contents", 16)
    with loaded(work, downloads) as first, loaded(work, downloads) as second:
        first.admit(100)
        first.change(working=0, waiting=100)
        assert (work.held, downloads.held) == (50, 50)
        second.admit(60)
        second.change(working=0, waiting=60)
        assert (work.held, downloads.held) == (110, 50)


def test_a_large_request_leaves_small_ones_some_room() -> None:
    work, downloads = of_items(512, "contents", 32), of_items(512, "waiting contents", 32)
    with loaded(work, downloads) as large, loaded(work, downloads) as small, loaded(work, downloads) as medium:
        large.admit(10_000)
        with pytest.raises(RequestError):
            medium.admit(33)
        small.admit(32)
        large.change(working=0, waiting=10_000)
        small.change(working=0, waiting=32)
        assert downloads.held == 448 + 32


@pytest.fixture(scope="module")
def narrow(serve_instance: Serve) -> Iterator[MarqoClient]:
    """Takes 8 contents, 4 contents of searches and 1 MiB at a time, waiting contents too; a body may stall for longer
    than metrics take."""
    limits = {"max_items_in_flight": 8, "max_searches_in_flight": 4, "max_bytes_in_flight": MEBIBYTE}
    limits |= {"body_grace_s": GRACE_S, "max_downloads_in_flight": 0}
    serve_instance.deploy(sturdy_config(name="narrow", replicas=1, **limits))
    client = MarqoClient(serve_instance.url + "/narrow")
    client.embed(["warm"])
    yield client
    serve_instance.deploy()


@contextlib.contextmanager
def busy(client: MarqoClient, host: ImageHost, **members: Any) -> Iterator[None]:
    """Eight contents are in flight while the context lasts, for four seconds."""
    before = host.in_flight
    slow = [host.url(f"/ok/{i}.jpg?delay=4") for i in range(8)]
    with ThreadPoolExecutor(1) as pool:
        preprocessing = {"downloadTimeoutMs": 10_000}
        request = pool.submit(client.vectorise, slow, "image", preprocessing=preprocessing, **members)
        assert host.wait_for("in_flight", before + 8)
        yield
        status, _ = request.result()
        assert status == 200


def refusal(reply: Any) -> str:
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    detail: str = msgpack.unpackb(reply.content)["detail"]
    return detail


def body(contents: list[str], search: bool = False) -> bytes:
    packed: bytes = msgpack.packb(
        {
            "modality": "language",
            "contents": contents,
            "modelConfig": {"modelName": "demo/clip"},
            "preprocessingConfig": {"modality": "language"},
            "useInferenceCache": search,
        }
    )
    return packed


def test_indexing_keeps_no_search_out(narrow: MarqoClient, image_host: ImageHost) -> None:
    with busy(narrow, image_host):
        assert "busy with 8 contents" in refusal(narrow.post(body(["one more"])))
        assert narrow.post(body(["a search"], search=True)).status_code == 200
    assert narrow.post(body(["one more"])).status_code == 200


def test_searches_keep_no_indexing_out(narrow: MarqoClient, image_host: ImageHost) -> None:
    with busy(narrow, image_host, useInferenceCache=True):
        assert "busy with 8 contents of searches" in refusal(narrow.post(body(["a search"], search=True)))
        assert narrow.post(body(["one more"])).status_code == 200


def test_hundreds_of_refusals_at_once_are_prompt(narrow: MarqoClient, image_host: ImageHost) -> None:
    """More requests than Serve's own limit on ongoing ones used to be: those beyond it hung."""
    with busy(narrow, image_host), ThreadPoolExecutor(64) as pool:
        started = time.monotonic()
        replies = list(pool.map(lambda _: narrow.post(body(["one more"])), range(300)))
        took = time.monotonic() - started
        # A request that comes after the four seconds is answered.
        assert sum(reply.status_code == 503 for reply in replies) > 64
        assert all("busy" in refusal(reply) for reply in replies if reply.status_code != 200)
        assert took < 10


def test_hundreds_of_requests_wait_together(narrow: MarqoClient, image_host: ImageHost) -> None:
    """Serve itself would let all beyond `max_ongoing_requests` wait, without end and without a word. The bodies are
    larger than what HAProxy keeps back."""
    host = urlsplit(narrow.url)
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection(host.netloc)))
            connection.putrequest("POST", host.path + "/vectorise")
            connection.putheader("Content-Type", MSGPACK)
            connection.putheader("Content-Length", str(MEBIBYTE))
            connection.endheaders(bytes(300_000))
        started = time.monotonic()
        assert narrow.post(body(["one more"])).status_code == 200
        assert time.monotonic() - started < 5


def test_bodies_are_counted_as_they_arrive_and_a_stalled_one_gives_way(narrow: MarqoClient) -> None:
    def held() -> float:
        return scraped("marqo_in_flight", application="narrow", what="bytes of requests")

    host = urlsplit(narrow.url)
    large = body(["a" * 500_000])
    # What the test before held may not have been given back yet.
    until(lambda: narrow.post(large).status_code == 200)
    with contextlib.closing(http.client.HTTPConnection(host.netloc)) as connection:
        connection.putrequest("POST", host.path + "/vectorise")
        connection.putheader("Content-Type", MSGPACK)
        connection.putheader("Content-Length", str(MEBIBYTE))
        connection.endheaders(bytes(900_000))
        wait_for(lambda: held() == 900_000, "the bytes of a body that is not complete")
        for _ in range(10):
            assert narrow.post(large).status_code == 200
        wait_for(lambda: held() == 0, "that the stalled body has given way")


def test_a_refused_body_is_read_on_and_holds_nothing(narrow: MarqoClient) -> None:
    """Two bodies of which one fits: the other is refused, whichever it is, and answered when it is complete."""
    host = urlsplit(narrow.url)
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(2):
            connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection(host.netloc)))
            connection.putrequest("POST", host.path + "/vectorise")
            connection.putheader("Content-Type", MSGPACK)
            connection.putheader("Content-Length", str(MEBIBYTE))
            connection.endheaders(bytes(900_000))
            connections.append(connection)
        wait_for(
            lambda: scraped("marqo_in_flight", application="narrow", what="bytes of requests") == 900_000,
            "the bytes of one of two bodies",
        )
        for connection in connections:
            connection.send(bytes(MEBIBYTE - 900_000))
        statuses = {connection.getresponse().status for connection in connections}
        assert statuses == {400, 503}  # zeros are no request
    until(lambda: narrow.post(body(["a" * 500_000])).status_code == 200)
