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
import psutil
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import encoded, jpeg, photo
from tests.support.ingress import data_uri, is_error
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import Serve, replica_pids, sturdy_config
from tests.support.waiting import still, until

APP, HASTY = "waiting", "waiting-hasty"
FILES = {f"{i}.jpg": jpeg(photo(i, 200, 150)) for i in range(40)}
PROMPT_S = 0.5
"""What 95 of 100 others take at most beside slow hosts."""
SPAN_S = 4.0
"""Longer than the quickest of the slow hosts takes."""
HASTY_S = 8.0
FEW = 64
LONG_TIMEOUT: dict[str, Any] = {"downloadTimeoutMs": 60_000}


@pytest.fixture(scope="module")
def clients(serve_instance: Serve) -> Iterator[tuple[MarqoClient, MarqoClient]]:
    """An application with chunks of the default size; and one whose requests have eight seconds, which works on 8
    contents at a time while 64 wait."""
    serve_instance.deploy(
        sturdy_config(name=APP, replicas=1, image_chunk=32),
        sturdy_config(
            name=HASTY,
            replicas=1,
            request_timeout_s=HASTY_S,
            max_items_in_flight=8,
            max_downloads_in_flight=FEW,
        ),
    )
    both = MarqoClient(f"{serve_instance.url}/{APP}"), MarqoClient(f"{serve_instance.url}/{HASTY}")
    for client in both:
        client.embed(["warm"])
    yield both
    serve_instance.deploy()


@pytest.fixture
def client(clients: tuple[MarqoClient, MarqoClient]) -> MarqoClient:
    return clients[0]


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
    """The encoder's CPU time tells: the chunk's other pictures are encoded while one is still on its way."""
    (pid,) = replica_pids("Encoder", APP)
    encoder = psutil.Process(pid)
    urls = [slow.url(f"/ok/{i}.jpg") for i in range(31)]
    client.embed(urls, "image")
    times = encoder.cpu_times()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.results, [slow.url("/held/31.jpg"), *urls], "image", preprocessing=LONG_TIMEOUT)
        until(lambda: encoder.cpu_times().user - times.user > 0.03 and slow.in_flight == 1)
        slow.release()
        assert not any(map(is_error, late.result()))


def test_what_came_before_a_requests_time_was_up_is_not_lost(
    clients: tuple[MarqoClient, MarqoClient], slow: ImageHost
) -> None:
    _, client = clients
    urls = [slow.url(f"/hang?{i}") if i % 8 == 7 else slow.url(f"/ok/{i % 40}.jpg") for i in range(64)]
    started = time.monotonic()
    results = client.results(urls, "image", preprocessing=LONG_TIMEOUT)
    assert time.monotonic() - started < HASTY_S
    assert [is_error(item) for item in results] == [i % 8 == 7 for i in range(64)]
    assert slow.wait_for("in_flight", 0)


def test_what_waits_is_no_work_until_too_much_waits(clients: tuple[MarqoClient, MarqoClient], slow: ImageHost) -> None:
    """Eight contents may be worked on; 64 others may wait beside, and what is beyond counts as work."""
    _, client = clients
    many = [slow.url(f"/hang?{i}") for i in range(FEW)]
    with asked(client, many, **LONG_TIMEOUT):
        until(lambda: slow.in_flight > 0)
        until(lambda: client.vectorise(["as many as there are places"] * 8)[0] == 200, 3.0)
        with asked(client, [f"{url}-too" for url in many[:8]], **LONG_TIMEOUT):
            # A text that came before it would keep it out.
            until(lambda: any(request.path.endswith("-too") for request in slow.requests))
            assert client.vectorise(["one more"])[0] == 503
        until(lambda: client.vectorise(["one more"])[0] == 200, 3.0)


def test_a_lost_preprocessor_costs_no_answer_while_others_wait(client: MarqoClient, slow: ImageHost) -> None:
    """What was encoded before is there; the rest is prepared again."""
    (pid,) = replica_pids("Preprocessor", APP)
    encoder = psutil.Process(*replica_pids("Encoder", APP))
    urls = [slow.url(f"/ok/{i}.jpg") for i in range(31)]
    expected = client.results([*urls, slow.url("/ok/31.jpg")], "image")
    urls.append(slow.url("/held/31.jpg"))
    slow.requests.clear()
    with ThreadPoolExecutor(1) as pool:
        before = encoder.cpu_times().user
        late = pool.submit(client.results, urls, "image", preprocessing=LONG_TIMEOUT)
        until(lambda: encoder.cpu_times().user - before > 0.03)
        # The other pictures are all in one part.
        until(lambda: still(lambda: encoder.cpu_times().user))
        assert slow.in_flight == 1
        psutil.Process(pid).kill()
        slow.release()
        results = late.result()
    assert [key for ((key, _),) in results] == urls
    assert all(abs(a[0][1] - b[0][1]).max() < 1e-5 for a, b in zip(results, expected, strict=True))
    assert [request.path for request in slow.requests[32:]] == ["/held/31.jpg"]
