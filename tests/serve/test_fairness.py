"""One slow or dead image host beside a good one, through the whole server: the good one's pictures come as ever."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from tests.support.marqo_client import MarqoClient
from tests.support.serve import Serve, sturdy_config

SLOW_CLIENTS = 4
CHUNK = 4


@pytest.fixture(scope="module")
def client(serve_instance: Serve) -> Iterator[MarqoClient]:
    serve_instance.deploy(sturdy_config(name="fair", replicas=1))
    client = MarqoClient(serve_instance.url + "/fair")
    client.embed(["warm"])
    yield client
    serve_instance.deploy()


@contextlib.contextmanager
def asking_for(client: MarqoClient, urls: list[str]) -> Iterator[None]:
    """Clients that ask for these pictures again and again while the context lasts."""
    stop = threading.Event()
    asked = threading.Semaphore(0)

    def ask() -> None:
        own = MarqoClient(client.url)
        while not stop.wait(0.05):
            asked.release()
            assert all(isinstance(item, dict) for item in own.results(urls, "image"))

    threads = [threading.Thread(target=ask) for _ in range(SLOW_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            asked.acquire()
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def latency(client: MarqoClient, host: ImageHost) -> float:
    """Median seconds of a request for four pictures of the good host."""
    urls = [host.url(f"/ok/{i}.jpg") for i in range(CHUNK)]
    latencies = []
    for _ in range(12):
        started = time.monotonic()
        assert all(isinstance(item, list) for item in client.results(urls, "image"))
        latencies.append(time.monotonic() - started)
    return statistics.median(latencies)


@pytest.mark.parametrize("kind", ["slow", "dead"])
def test_a_bad_host_slows_no_other(client: MarqoClient, kind: str) -> None:
    files = {f"{i}.jpg": jpeg(photo(i, 200, 150)) for i in range(CHUNK)}
    with ImageHost(files) as good, ImageHost(address="127.0.0.2") as slow, socket.socket() as dead:
        dead.bind(("127.0.0.3", 0))  # a port on which no process listens
        address = slow.url("/hang") if kind == "slow" else f"http://127.0.0.3:{dead.getsockname()[1]}/hang"
        latency(client, good)
        alone = latency(client, good)
        with asking_for(client, [f"{address}?{i}" for i in range(CHUNK)]):
            beside = latency(client, good)
    print(f"{kind} host: {1000 * alone:.0f} ms alone, {1000 * beside:.0f} ms beside it")
    # One item of the bad host that got in the way would cost up to three seconds.
    assert beside < 4 * alone + 0.1
