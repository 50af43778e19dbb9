"""Preprocessors and encoders scale separately, each with its own load. With fractional CPUs and short delays."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes, scenes
from tests.support.marqo_client import MarqoClient

APP = "scaling"
PATIENCE_S = 60.0


def scaling(target: float) -> dict[str, Any]:
    return {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": target,
        "upscale_delay_s": 1,
        "downscale_delay_s": 600,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
    }


def application_config() -> dict[str, Any]:
    small = {"num_cpus": 0.1}
    return {
        "name": APP,
        "route_prefix": "/scaling",
        "import_path": "graph:build_app",
        "args": {
            "ingress": {"image_chunk": 4, "text_chunk": 16},
            "preprocessor": {"fetch": {"allowed_networks": "127.0.0.0/8"}},
            "encoder": {"device": "cpu", "preload": ["demo/clip"]},
        },
        "deployments": [
            {"name": "Ingress", "ray_actor_options": small},
            {
                "name": "Preprocessor",
                "ray_actor_options": small,
                "max_ongoing_requests": 32,
                "autoscaling_config": scaling(2),
            },
            {
                "name": "Encoder",
                "ray_actor_options": small,
                "max_ongoing_requests": 64,
                "user_config": {"max_image_batch": 8, "max_text_batch": 16},
                "autoscaling_config": scaling(6),
            },
        ],
    }


def replicas(deployment: str) -> int:
    """How many replicas the autoscaler wants: running ones and those that start."""
    from ray import serve

    states = serve.status().applications[APP].deployments[deployment].replica_states
    return sum(count for state, count in states.items() if state in ("STARTING", "RUNNING"))


@contextmanager
def load(clients: int, send: Callable[[], Any]) -> Iterator[None]:
    """Keeps `clients` requests in flight."""
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


def most_replicas_until(grown: str, *others: str) -> dict[str, int]:
    """Watches until `grown` has two replicas; the most that each of the others had meanwhile."""
    most = dict.fromkeys((grown, *others), 0)
    deadline = time.monotonic() + PATIENCE_S
    while most[grown] < 2:
        assert time.monotonic() < deadline, f"{grown} did not grow: {most}"
        for name in most:
            most[name] = max(most[name], replicas(name))
        time.sleep(0.2)
    return most


@pytest.fixture
def pictures() -> Iterator[Sequence[str]]:
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(scenes(8, 3))}
    with ImageHost(files) as host:
        yield [host.url(f"/ok/{name}?delay=1") for name in files]


def test_slow_image_hosts_grow_the_preprocessors_alone(
    application: Callable[[dict[str, Any]], MarqoClient], pictures: Sequence[str]
) -> None:
    client = application(application_config())
    with load(8, lambda: client.embed(pictures, "image")):
        most = most_replicas_until("Preprocessor", "Encoder")
    assert most["Encoder"] == 1


def test_texts_grow_the_encoders_alone(application: Callable[[dict[str, Any]], MarqoClient]) -> None:
    client = application(application_config())
    texts = [f"text number {i} of many, long enough to cost the encoder something" for i in range(128)]
    with load(8, lambda: client.embed(texts)):
        most = most_replicas_until("Encoder", "Preprocessor")
    assert most["Preprocessor"] == 1
