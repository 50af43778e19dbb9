"""Clients that keep a server at work."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def load(clients: int, send: Callable[[], Any]) -> Iterator[None]:
    """Keeps `clients` requests in flight while the context lasts. An error of one of them is raised at its end."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            send()

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(work) for _ in range(clients)]
        try:
            yield
        finally:
            stop.set()
    for future in futures:
        future.result()
