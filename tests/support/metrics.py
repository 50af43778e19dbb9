"""What a running graph tells Prometheus, read where Prometheus reads it."""

import re
import time
from collections.abc import Callable

import httpx
import ray

TIMEOUT_S = 60.0


def scraped(name: str, **wanted: str) -> float:
    """The sum of a metric over everything that has the wanted labels; 0 if it has not been reported yet."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    # Ray goes on listing nodes that have been killed.
    ports = [node["MetricsExportPort"] for node in nodes if node["Alive"]]
    page = "\n".join(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text for port in ports)
    lines = re.findall(rf"^ray_{name}{{([^}}]*)}} (\S+)$", page, re.MULTILINE)
    pairs = {f'{label}="{value}"' for label, value in wanted.items()}
    return sum(float(value) for labels, value in lines if all(pair in labels for pair in pairs))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Polls; metrics are reported every few seconds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never reached the metrics"
        time.sleep(0.5)


def wait_until_all_but_downloads_are_done(application: str, downloads: int) -> None:
    """Waits until an application works on no item, while so many wait for their downloads. These metrics are set
    every ten seconds."""

    def held(what: str) -> float:
        return scraped("marqo_in_flight", application=application, what=what)

    # In this order: what is worked on is told together with what waits, or later.
    wait_for(lambda: held("waiting contents") == downloads and held("contents") == 0, f"{downloads} downloads alone")
