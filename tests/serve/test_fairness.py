"""One slow or dead image host beside a good one, through the whole server: the good one's pictures come as ever."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from tests.support.ingress import is_error
from tests.support.marqo_client import MarqoClient
from tests.support.waiting import until

SLOW_CLIENTS = 4
PICTURES = 4


@contextlib.contextmanager
def asking_for(marqo: MarqoClient, urls: list[str]) -> Iterator[list[int]]:
    """Clients that ask for pictures of a bad host again and again while the context lasts. Yields how many requests
    each has had answered, with nothing but errors."""
    stop = threading.Event()
    answered = [0] * SLOW_CLIENTS

    def ask(number: int) -> None:
        own = MarqoClient(marqo.url)
        while not stop.wait(0.05):
            assert all(map(is_error, own.results(urls, "image")))
            answered[number] += 1

    with ThreadPoolExecutor(SLOW_CLIENTS) as pool:
        clients = [pool.submit(ask, number) for number in range(SLOW_CLIENTS)]
        try:
            yield answered
        finally:
            stop.set()
        for client in clients:
            client.result()


def latency(marqo: MarqoClient, host: ImageHost) -> float:
    """Median seconds of a request for four pictures of the good host."""
    urls = [host.url(f"/ok/{i}.jpg") for i in range(PICTURES)]
    latencies = []
    for _ in range(12):
        started = time.monotonic()
        marqo.embed(urls, "image")
        latencies.append(time.monotonic() - started)
    return statistics.median(latencies)


@pytest.mark.parametrize("kind", ["slow", "dead"])
def test_a_bad_host_slows_no_other(marqo: MarqoClient, kind: str) -> None:
    files = {f"{i}.jpg": jpeg(photo(i, 200, 150)) for i in range(PICTURES)}
    with ImageHost(files) as good, ImageHost(address="127.0.0.2") as slow, socket.socket() as dead:
        dead.bind(("127.0.0.3", 0))  # a port on which no process listens
        address = slow.url("/hang") if kind == "slow" else f"http://127.0.0.3:{dead.getsockname()[1]}/hang"
        alone = latency(marqo, good)
        with asking_for(marqo, [f"{address}?{i}" for i in range(PICTURES)]) as answered:
            until(lambda: slow.in_flight > 0 if kind == "slow" else min(answered) > 0)
            beside = latency(marqo, good)
    print(f"{kind} host: {1000 * alone:.0f} ms alone, {1000 * beside:.0f} ms beside it")
    # An item of the bad host that got in the way would cost the three seconds that its download may take.
    assert beside < 2.0
