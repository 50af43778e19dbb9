"""Across replicas: a rarely used model stays where it was loaded, a busy one overflows; `/models` tells of all."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from tests.support.marqo_client import MarqoClient
from tests.support.replicas import APP, holders
from tests.support.waiting import until

LIMIT_S = 60.0
TEXTS = [f"text number {i}, to keep an encoder busy" for i in range(64)]


def random_model(number: int) -> dict[str, Any]:
    return {"type": "random", "name": f"random/{number}", "dimensions": 8 + number}


def test_a_rarely_used_model_is_loaded_by_one_replica(client: MarqoClient) -> None:
    """Ten models, each asked for ten times, one request at a time: each is loaded by one of the three replicas."""
    for _ in range(10):
        for number in range(10):
            client.embed(["hi"], model=f"random/{number}", properties=random_model(number))
    assert [holders(client, f"random/{number}") for number in range(10)] == [1] * 10


def eject(client: MarqoClient, name: str) -> None:
    """From all replicas."""
    if holders(client, name):
        assert client.delete(f"/models?model_name={name}&model_device=cpu").status_code == 200
    assert holders(client, name) == 0


def embed_at_once(client: MarqoClient, requests: int, *model: Any) -> None:
    """From six threads."""
    with ThreadPoolExecutor(6) as pool:
        assert all(len(rows) == len(TEXTS) for rows in pool.map(lambda _: embed(client, *model), range(requests)))


def embed(client: MarqoClient, *model: Any) -> Any:
    return client.embed(TEXTS, "language", *model)


@contextlib.contextmanager
def all_busy(client: MarqoClient) -> Iterator[None]:
    """All three replicas, with the demo's model."""
    stop = threading.Event()

    def keep_busy(_: int) -> None:
        while not stop.is_set():
            embed(client)

    eject(client, "demo/clip")
    with ThreadPoolExecutor(6) as pool:
        busy = [pool.submit(keep_busy, i) for i in range(6)]
        try:
            until(lambda: holders(client, "demo/clip") == 3, LIMIT_S)
            yield
        finally:
            stop.set()
        for one in busy:
            one.result()


def test_a_rarely_used_model_stays_on_one_replica_under_load_of_another(client: MarqoClient) -> None:
    with all_busy(client):
        for _ in range(5):
            for number in range(20, 30):
                client.embed(["hi"], model=f"random/{number}", properties=random_model(number))
    assert [holders(client, f"random/{number}") for number in range(20, 30)] == [1] * 10
    assert holders(client, "demo/clip") == 3


def test_a_formerly_busy_model_returns_to_its_preferred_replica(client: MarqoClient) -> None:
    """Each request makes many calls, all under the same id of Serve's: none of them may be counted for ever."""
    embed_at_once(client, 48, "random/40", random_model(40))
    eject(client, "random/40")
    with all_busy(client):
        for _ in range(20):
            client.embed(["hi"], model="random/40", properties=random_model(40))
    assert holders(client, "random/40") == 1


def test_a_busy_model_overflows_to_further_replicas(client: MarqoClient) -> None:
    assert holders(client, "random/50") == 0
    embed_at_once(client, 48, "random/50", random_model(50))
    assert holders(client, "random/50") == 3


def test_models_are_listed_once_and_ejected_everywhere(client: MarqoClient) -> None:
    embed_at_once(client, 24)
    assert holders(client, "demo/clip") > 1
    names = [model["model_name"] for model in client.get("/models").json()["models"]]
    assert names.count("demo/clip") == 1
    eject(client, "demo/clip")
    client.embed(["a red circle"])


def test_a_model_is_ejected_everywhere_by_its_key(client: MarqoClient) -> None:
    """As the newer generation does it."""
    embed_at_once(client, 24)
    assert holders(client, "demo/clip") > 1
    keys = [model["modelName"] for model in client.get("/models?detailed=false").json()["models"]]
    (key,) = [key for key in keys if key.startswith("demo/clip||")]
    assert client.delete(f"/models?model_name={quote(key)}").status_code == 200
    assert holders(client, "demo/clip") == 0
    assert not any(model["modelName"] == key for model in client.get("/models?detailed=false").json()["models"])


def test_models_are_listed_with_their_replicas(client: MarqoClient) -> None:
    import ray
    from ray import serve

    embed_at_once(client, 24)
    models = client.get("/models?replicas=true").json()["models"]
    (holding,) = (model["replicas"] for model in models if model["model_name"] == "demo/clip")
    running = serve.status().applications[APP].deployments["Encoder"]
    assert running.replica_states == {"RUNNING": 3}
    assert len({holder["replica"] for holder in holding}) == len(holding) > 1
    assert {holder["node"] for holder in holding} == {ray.get_runtime_context().get_node_id()}
    assert all(holder["bytes"] > 100_000 for holder in holding)
    assert "replicas" not in client.get("/models").json()["models"][0]
