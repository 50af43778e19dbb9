"""Across replicas: a cold model stays where it was loaded, a hot one spreads, both shapes of `/models` see all."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import Serve
from marqo_client import MarqoClient

TEXTS = [f"text number {i}, to keep an encoder busy" for i in range(64)]


@pytest.fixture(scope="module")
def client(serve_instance: Serve) -> Iterator[MarqoClient]:
    share = {"num_cpus": 0.1}
    serve_instance.deploy(
        {
            "name": "routed",
            "route_prefix": "/routed",
            "import_path": "graph:build_app",
            "args": {"ingress": {"text_chunk": 4}, "encoder": {"device": "cpu"}},
            "deployments": [
                {"name": "Ingress", "ray_actor_options": share},
                {"name": "Preprocessor", "ray_actor_options": share},
                {"name": "Encoder", "num_replicas": 3, "ray_actor_options": share},
            ],
        }
    )
    yield MarqoClient(serve_instance.url + "/routed")
    serve_instance.deploy()


def holders(name: str) -> int:
    """How many replicas hold a model."""
    from ray import serve

    encoders = serve.get_deployment_handle("Encoder", "routed")
    if not encoders.is_initialized:
        encoders._init(_run_router_in_separate_loop=True)  # as in conftest's `handle`
    replicas: list[list[Any]] = encoders.broadcast("models").results(timeout_s=30)
    return sum(any(info.name == name for info in replica) for replica in replicas)


def random_model(number: int) -> dict[str, Any]:
    return {"type": "random", "name": f"random/{number}", "dimensions": 8 + number}


def test_a_cold_model_stays_at_home(client: MarqoClient) -> None:
    """Ten models, each asked for ten times, one request at a time: each is loaded by one of the three replicas."""
    for _ in range(10):
        for number in range(10):
            client.results(["hi"], model=f"random/{number}", properties=random_model(number))
    assert [holders(f"random/{number}") for number in range(10)] == [1] * 10


def test_a_hot_model_spreads(client: MarqoClient) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.results(TEXTS), range(24)))
    assert holders("demo/clip") == 3


def test_models_are_listed_once_and_ejected_everywhere(client: MarqoClient) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.results(TEXTS), range(24)))
    assert holders("demo/clip") > 1
    names = [model["model_name"] for model in client.get("/models").json()["models"]]
    assert names.count("demo/clip") == 1
    assert client.delete("/models?model_name=demo/clip&model_device=cpu").status_code == 200
    assert holders("demo/clip") == 0
    assert client.results(["a red circle"])
