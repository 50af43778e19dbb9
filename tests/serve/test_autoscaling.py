"""Preprocessors and encoders scale separately, each with its own load. With fractional CPUs and short delays."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from benchmarks.lib.cluster import wait_until
from benchmarks.lib.image_host import ImageHost
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes, scenes
from tests.support.load import load
from tests.support.marqo_client import MarqoClient
from tests.support.serve import Serve
from tests.support.waiting import holds

APP = "scaling"
PATIENCE_S = 60.0
LOOK_BACK_S = 2.0


def scaling(target: float) -> dict[str, Any]:
    return {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": target,
        "upscale_delay_s": 1,
        "downscale_delay_s": 1,
        "metrics_interval_s": 0.5,
        "look_back_period_s": LOOK_BACK_S,
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
                "autoscaling_config": scaling(32),
            },
        ],
    }


def replicas(deployment: str) -> int:
    """How many replicas the autoscaler wants: running ones and those that start."""
    from ray import serve

    states = serve.status().applications[APP].deployments[deployment].replica_states
    return sum(count for state, count in states.items() if state in ("STARTING", "RUNNING"))


@pytest.fixture(scope="module")
def deployed(serve_instance: Serve) -> Iterator[MarqoClient]:
    yield MarqoClient(serve_instance.add(application_config()))
    serve_instance.remove(APP)


@pytest.fixture
def client(deployed: MarqoClient) -> MarqoClient:
    """Of the application when it has one replica of each deployment."""
    wait_until(lambda: replicas("Preprocessor") == replicas("Encoder") == 1, "one replica of each", PATIENCE_S)
    return deployed


def grows_alone(grown: str, other: str) -> bool:
    """Watches until a deployment has two replicas, and for as long again as the autoscaler looks back; returns whether
    the other one always had one."""
    deadline = time.monotonic() + PATIENCE_S
    while replicas(grown) < 2:
        assert time.monotonic() < deadline, f"{grown} did not grow"
        if replicas(other) != 1:
            return False
        time.sleep(0.2)
    return holds(lambda: replicas(other) == 1, LOOK_BACK_S)


@pytest.fixture
def pictures() -> Iterator[Sequence[str]]:
    """They come a second after they are asked for."""
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(scenes(8, 3))}
    with ImageHost(files) as host:
        yield [host.url(f"/ok/{name}?delay=1") for name in files]


def test_slow_image_hosts_grow_the_preprocessors_alone(client: MarqoClient, pictures: Sequence[str]) -> None:
    """Eight clients have two calls each in flight: too many for a preprocessor, few for an encoder."""
    with load(8, lambda: client.embed(pictures, "image")):
        assert grows_alone("Preprocessor", "Encoder")


def test_texts_grow_the_encoders_alone(client: MarqoClient) -> None:
    """Twelve clients have eight calls each in flight."""
    texts = [f"text number {i} of many, long enough to cost the encoder something" for i in range(128)]
    with load(12, lambda: client.embed(texts)):
        assert grows_alone("Encoder", "Preprocessor")
