"""Pictures of any format that are made to be slow do not delay the pictures of other clients."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import encoded, jpeg, photo
from tests.support import hostile_pictures
from tests.support.marqo_client import MarqoClient
from tests.support.serve import replica_pids
from tests.support.waiting import until

ORDINARY = {
    "a.jpg": jpeg(photo(1, 600, 400)),
    "a.png": encoded(photo(2, 400, 300), "PNG"),
    "progressive.jpg": jpeg(photo(3, 500, 400), progressive=True),
    "a.webp": encoded(photo(4, 400, 300), "WEBP"),
}
SLOW = {
    "scans": hostile_pictures.scan_bomb(9000),
    "less scans": hostile_pictures.scan_bomb(6000),
    "dds": hostile_pictures.dds(2500),
    "qoi": hostile_pictures.qoi_runs(9000),
    "chunks": hostile_pictures.many_chunks(1_500_000),
    "segments": hostile_pictures.many_segments(6_000_000),
}
ATTACK_S = 120.0
PROMPT_S = 4.5
"""What an ordinary picture takes at most. One that waited for a slow one would take the five seconds of that one."""
CLIENTS = 4


@pytest.fixture(scope="module")
def host() -> Iterator[ImageHost]:
    with ImageHost(ORDINARY | {name.replace(" ", "-"): data for name, data in SLOW.items()}) as host:
        yield host


def waits(client: MarqoClient, urls: list[str], right: list[Any], turn: int) -> list[float]:
    """Seconds for each of these pictures, asked for one after the other."""
    taken = []
    for url, expected in zip(urls, right, strict=True):
        started = time.monotonic()
        ((_, vector),) = client.results([f"{url}?{turn}"], "image")[0]
        taken.append(time.monotonic() - started)
        np.testing.assert_allclose(vector, expected[0][1], atol=1e-5)
    return taken


def test_slow_pictures_hold_up_nobody(marqo: MarqoClient, host: ImageHost) -> None:
    ordinary = [host.url(f"/ok/{name}") for name in ORDINARY]
    right = [marqo.results([url], "image")[0] for url in ordinary]
    pids = set(replica_pids("Preprocessor", "marqo"))
    over = threading.Event()
    messages: list[str] = []

    def attack(number: int) -> None:
        """Requests of many slow pictures, and of one, each picture under a name that was never seen before."""
        names = [name.replace(" ", "-") for name in SLOW]
        for turn in range(1000):
            if over.is_set():
                break
            count = 12 if number % 2 else 1
            urls = [host.url(f"/ok/{names[(turn + i) % len(names)]}?{number}-{turn}-{i}") for i in range(count)]
            # A quick machine decodes some of them in time.
            results = marqo.results(urls, "image")
            messages.extend(item["error_message"] for item in results if isinstance(item, dict))

    def given_up() -> int:
        """Slow pictures that took all of the time that a picture may take."""
        return sum("takes more than 5 s of CPU to decode" in message for message in messages)

    with ThreadPoolExecutor(CLIENTS) as pool:
        attackers = [pool.submit(attack, number) for number in range(CLIENTS)]
        try:
            until(lambda: given_up() > 0, ATTACK_S)
            before, deadline = given_up(), time.monotonic() + ATTACK_S
            taken: list[float] = []
            # At least twice, and until one is given up whose decoding went on meanwhile.
            while len(taken) < 2 * len(ordinary) or given_up() == before:
                assert time.monotonic() < deadline
                taken += waits(marqo, ordinary, right, len(taken))
        finally:
            over.set()
        for attacker in attackers:
            attacker.result()
    print(f"answers within {[round(each, 2) for each in taken]} s, {len(messages)} slow pictures refused")
    assert max(taken) < PROMPT_S
    assert all("to decode" in message for message in messages)
    assert set(replica_pids("Preprocessor", "marqo")) == pids


def test_a_slow_picture_is_decoded_once(marqo: MarqoClient, host: ImageHost) -> None:
    url = host.url("/ok/scans?once")
    (first,) = marqo.results([url], "image")
    (again,) = marqo.results([url], "image")
    assert "takes more than 5 s of CPU to decode" in first["error_message"]
    assert "took too long to decode and is refused for 10 minutes" in again["error_message"]
