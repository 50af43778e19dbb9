"""Contents that wait for slow image hosts take nothing that others need: neither a place, nor a turn, nor a thread."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import msgpack
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import encoded, jpeg, photo
from tests.support.ingress import busy_with, data_uri, is_error
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.metrics import wait_until_all_but_downloads_are_done
from tests.support.serve import Serve, sturdy_config
from tests.support.waiting import until

FILES = {f"{i}.jpg": jpeg(photo(i, 200, 150)) for i in range(40)}
PROMPT_S = 2.0
"""What 95 of 100 others take at most beside slow hosts. One that waited for a download would take longer."""
SPAN_S = 4.0
"""Longer than the quickest of the slow hosts takes."""
TIMEOUT_S = 8.0
TIMEOUT_APP = "timeout-8s"
ITEMS, DOWNLOADS = 8, 64
LONG_TIMEOUT: dict[str, Any] = {"downloadTimeoutMs": 60_000}


@pytest.fixture(scope="module")
def client(marqo: MarqoClient) -> MarqoClient:
    """The main application, whose model another test may have ejected."""
    marqo.embed(["warm"])
    return marqo


@pytest.fixture(scope="module")
def short_timeout(serve_instance: Serve) -> Iterator[MarqoClient]:
    """An application whose requests have eight seconds, and which works on 8 items at a time while 64 wait."""
    limits = {"max_items_in_flight": ITEMS, "max_downloads_in_flight": DOWNLOADS}
    config = sturdy_config(name=TIMEOUT_APP, replicas=1, request_timeout_s=TIMEOUT_S, **limits)
    client = MarqoClient(serve_instance.add(config))
    client.embed(["warm"])
    yield client
    serve_instance.remove(TIMEOUT_APP)


@pytest.fixture(scope="module")
def healthy() -> Iterator[ImageHost]:
    with ImageHost(FILES) as host:
        yield host


@pytest.fixture
def slow() -> Iterator[ImageHost]:
    with ImageHost(FILES, address="127.0.0.2") as host:
        yield host


@contextlib.contextmanager
def asked(client: MarqoClient, contents: Sequence[str], search: bool = False, **preprocessing: Any) -> Iterator[None]:
    """A request for pictures that is not answered, at least not waited for, while the context lasts."""
    body = {
        "modality": "image",
        "contents": contents,
        "modelConfig": {"modelName": "demo/clip"},
        "preprocessingConfig": {"modality": "image", "downloadThreadCount": 20, **preprocessing},
        "useInferenceCache": search,
        "returnIndividualError": True,
    }
    address = urlsplit(client.url)
    with contextlib.closing(http.client.HTTPConnection(address.netloc)) as connection:
        headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
        connection.request("POST", address.path + "/vectorise", msgpack.packb(body), headers)
        yield


def others(client: MarqoClient, healthy: ImageHost) -> list[Callable[[int], list[Any]]]:
    """What other clients ask for meanwhile; of a healthy host as many pictures as Marqo sends, too."""
    uri = data_uri(encoded(photo(50, 90, 60), "PNG"))
    image = {"preprocessing": {"downloadThreadCount": 1}, "useInferenceCache": True}
    return [
        lambda i: client.results([f"a search, number {i}"], useInferenceCache=True),
        lambda i: client.results([uri], "image", **image),
        lambda i: client.results([healthy.url(f"/ok/{i % 40}.jpg?{i}")], "image", **image),
        lambda i: client.results([healthy.url(f"/ok/{j}.jpg?{i}") for j in range(8)], "image"),
    ]


def assert_prompt(client: MarqoClient, healthy: ImageHost, name: str) -> None:
    """Whatever others ask for is answered, and soon."""
    asks = others(client, healthy)
    taken: list[list[float]] = [[] for _ in asks]
    began = time.monotonic()
    while time.monotonic() - began < SPAN_S:
        for ask, latencies in zip(asks, taken, strict=True):
            started = time.monotonic()
            assert not any(map(is_error, ask(len(latencies))))
            latencies.append(time.monotonic() - started)
    p95 = [sorted(latencies)[len(latencies) * 95 // 100] for latencies in taken]
    kinds = ("texts", "data URIs", "pictures", "batches")
    print(f"beside {name}, p95 of", ", ".join(f"{k} {1000 * s:.0f} ms" for k, s in zip(kinds, p95, strict=True)))
    assert max(p95) < PROMPT_S


CASES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "640 of a host that takes 2.5 s": ("/ok/0.jpg?delay=2.5&{}", 640, 1, {}),
    "1280 of a host that takes 20 s": ("/ok/0.jpg?delay=20&{}", 1280, 1, LONG_TIMEOUT),
    "2000 that never come": ("/hang?{}", 2000, 1, {}),
    "2000 that never come, in 16 requests": ("/hang?{}", 125, 16, {}),
    "512 that never come, as a search": ("/hang?{}", 512, 1, {"search": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_slow_hosts_delay_nobody_else(client: MarqoClient, healthy: ImageHost, slow: ImageHost, case: str) -> None:
    path, count, requests, options = CASES[case]
    with contextlib.ExitStack() as stack:
        for number in range(requests):
            urls = [slow.url(path.format(f"{number}-{i}")) for i in range(count)]
            stack.enter_context(asked(client, urls, **options))
        until(lambda: slow.in_flight > 0)
        assert_prompt(client, healthy, case)
        assert slow.in_flight > 0
    assert slow.wait_for("in_flight", 0)


def test_a_request_has_as_many_transfers_as_it_wants(client: MarqoClient, slow: ImageHost) -> None:
    urls = [slow.url(f"/ok/{i % 40}.jpg?delay=0.05&{i}") for i in range(200)]
    for threads in (3, 7):
        slow.peak = 0
        assert not any(map(is_error, client.results(urls, "image", preprocessing={"downloadThreadCount": threads})))
        assert slow.peak <= threads
    assert slow.peak > 3


def test_a_slow_picture_holds_up_no_encoding(client: MarqoClient, slow: ImageHost) -> None:
    """The chunk's other pictures are encoded while one is still on its way."""
    urls = [slow.url("/held/31.jpg"), *(slow.url(f"/ok/{i}.jpg") for i in range(31))]
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.results, urls, "image", preprocessing=LONG_TIMEOUT)
        try:
            wait_until_all_but_downloads_are_done("marqo", 1)
            assert slow.in_flight == 1
        finally:
            slow.release()
        assert not any(map(is_error, late.result()))


def test_what_came_before_a_requests_time_was_up_is_not_lost(short_timeout: MarqoClient, slow: ImageHost) -> None:
    urls = [slow.url(f"/hang?{i}") if i % 8 == 7 else slow.url(f"/ok/{i % 40}.jpg") for i in range(64)]
    results = short_timeout.results(urls, "image", preprocessing=LONG_TIMEOUT)
    assert [is_error(item) for item in results] == [i % 8 == 7 for i in range(64)]
    assert slow.wait_for("in_flight", 0)


def working(client: MarqoClient) -> int:
    """Items that count as work: how many the ingress names when it refuses a request that needs all of its room."""
    status, body = client.vectorise(["as many as there are places"] * ITEMS)
    if status == 200:
        return 0
    assert status == 503, body
    return busy_with(body["detail"], "contents")


def test_waiting_items_count_as_work_beyond_the_limit(short_timeout: MarqoClient, slow: ImageHost) -> None:
    """Eight items may be worked on; 64 others may wait beside, and what is beyond counts as work."""
    client = short_timeout
    many = [slow.url(f"/hang?{i}") for i in range(DOWNLOADS)]
    with asked(client, many, **LONG_TIMEOUT):
        until(lambda: slow.in_flight > 0)
        until(lambda: working(client) == 0, 3.0)
        client.embed(["as many as there are places"] * ITEMS)
        with asked(client, [f"{url}-too" for url in many[:ITEMS]], **LONG_TIMEOUT):
            # A text that came before it would keep it out.
            until(lambda: any(request.path.endswith("-too") for request in slow.requests))
            assert working(client) == ITEMS
        until(lambda: working(client) == 0, 3.0)
        client.embed(["one more"])
        assert slow.in_flight > 0
