"""Across replicas: a cold model stays where it was loaded, a hot one spreads, both shapes of `/models` see all."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from urllib.parse import quote

import pytest

from deployments import routing
from deployments.ray_internals import ReplicaID, RequestMetadata
from deployments.routing import CallsInFlight
from tests.support.marqo_client import MarqoClient
from tests.support.serve import Serve

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


def holders(client: MarqoClient, name: str) -> int:
    """How many replicas hold a model."""
    models = client.get("/models?replicas=true").json()["models"]
    return sum(len(model["replicas"]) for model in models if model["model_name"] == name)


def random_model(number: int) -> dict[str, Any]:
    return {"type": "random", "name": f"random/{number}", "dimensions": 8 + number}


def test_a_cold_model_stays_at_home(client: MarqoClient) -> None:
    """Ten models, each asked for ten times, one request at a time: each is loaded by one of the three replicas."""
    for _ in range(10):
        for number in range(10):
            client.embed(["hi"], model=f"random/{number}", properties=random_model(number))
    assert [holders(client, f"random/{number}") for number in range(10)] == [1] * 10


@contextlib.contextmanager
def all_busy(client: MarqoClient) -> Iterator[None]:
    """All three replicas, with the demo's model."""
    stop = threading.Event()

    def keep_busy(_: int) -> None:
        while not stop.is_set():
            client.embed(TEXTS)

    client.embed(["hi"])
    with ThreadPoolExecutor(6) as pool:
        busy = [pool.submit(keep_busy, i) for i in range(6)]
        try:
            yield
        finally:
            stop.set()
        for one in busy:
            one.result()


def test_a_cold_model_stays_at_home_beside_a_hot_one(client: MarqoClient) -> None:
    with all_busy(client):
        for _ in range(5):
            for number in range(20, 30):
                client.embed(["hi"], model=f"random/{number}", properties=random_model(number))
    assert [holders(client, f"random/{number}") for number in range(20, 30)] == [1] * 10
    assert holders(client, "demo/clip") == 3


def test_a_model_that_was_hot_stays_at_home_when_it_is_cold(client: MarqoClient) -> None:
    """Each request makes many calls, all under the same id of Serve's: none of them may be counted for ever."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.embed(TEXTS, model="random/40", properties=random_model(40)), range(48)))
    assert client.delete("/models?model_name=random/40&model_device=cpu").status_code == 200
    assert holders(client, "random/40") == 0
    with all_busy(client):
        for _ in range(20):
            client.embed(["hi"], model="random/40", properties=random_model(40))
    assert holders(client, "random/40") == 1


def test_a_hot_model_spreads(client: MarqoClient) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.embed(TEXTS), range(24)))
    assert holders(client, "demo/clip") == 3


def test_models_are_listed_once_and_ejected_everywhere(client: MarqoClient) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.embed(TEXTS), range(24)))
    assert holders(client, "demo/clip") > 1
    names = [model["model_name"] for model in client.get("/models").json()["models"]]
    assert names.count("demo/clip") == 1
    assert client.delete("/models?model_name=demo/clip&model_device=cpu").status_code == 200
    assert holders(client, "demo/clip") == 0
    client.embed(["a red circle"])


def test_a_model_is_ejected_everywhere_by_its_key(client: MarqoClient) -> None:
    """As the newer generation does it."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.embed(TEXTS), range(24)))
    assert holders(client, "demo/clip") > 1
    keys = [model["modelName"] for model in client.get("/models?detailed=false").json()["models"]]
    (key,) = [key for key in keys if key.startswith("demo/clip||")]
    assert client.delete(f"/models?model_name={quote(key)}").status_code == 200
    assert holders(client, "demo/clip") == 0
    assert not any(model["modelName"] == key for model in client.get("/models?detailed=false").json()["models"])


def test_models_are_listed_with_their_replicas(client: MarqoClient) -> None:
    import ray
    from ray import serve

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: client.embed(TEXTS), range(24)))
    models = client.get("/models?replicas=true").json()["models"]
    (holding,) = (model["replicas"] for model in models if model["model_name"] == "demo/clip")
    running = serve.status().applications["routed"].deployments["Encoder"]
    assert running.replica_states == {"RUNNING": 3}
    assert len({holder["replica"] for holder in holding}) == len(holding) > 1
    # Ray goes on listing nodes that other tests have killed.
    (node,) = (one for one in ray.nodes() if one["Alive"])  # type: ignore[no-untyped-call]  # Ray's
    assert {holder["node"] for holder in holding} == {node["NodeID"]}
    assert all(holder["bytes"] > 100_000 for holder in holding)
    assert "replicas" not in client.get("/models").json()["models"][0]


# Any two different values will do.
HOME, OTHER = cast(ReplicaID, "home"), cast(ReplicaID, "other")


def call(request: str, model: str) -> RequestMetadata:
    return RequestMetadata(request_id=request, internal_request_id=request, session_id=model)


def test_calls_are_counted_by_model_and_replica() -> None:
    calls = CallsInFlight()
    refused, hot, cold = call("1", "hot"), call("2", "hot"), call("3", "cold")
    for one in (refused, hot, cold):
        calls.chosen(one, HOME)
    assert calls.share("hot", HOME) == pytest.approx(2 / 3)
    # Refused by the preferred replica, and sent to another one before the refusal is noted.
    calls.chosen(refused, OTHER)
    calls.ended("1", HOME)
    assert (calls.share("hot", HOME), calls.share("hot", OTHER)) == (0.5, 1.0)
    for request, replica in (("1", OTHER), ("2", HOME), ("2", HOME), ("never", HOME)):
        calls.ended(request, replica)
    assert (calls.share("hot", HOME), calls.share("cold", HOME), calls.share("hot", OTHER)) == (0.0, 1.0, 0.0)
    calls.forget(cold)
    calls.forget(cold)
    assert calls.share("cold", HOME) == 0.0


def test_calls_of_one_request_are_counted_each() -> None:
    """Serve's id is the same for all of them."""
    calls = CallsInFlight()
    for one in [call("1", "hot") for _ in range(3)] + [call("2", "cold")]:
        calls.chosen(one, HOME)
    for share in (2 / 3, 1 / 2, 0, 0):
        calls.ended("1", HOME)
        assert calls.share("hot", HOME) == pytest.approx(share)


def test_a_call_that_never_arrives_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "LONGEST_S", -1.0)
    calls = CallsInFlight()
    calls.chosen(call("1", "hot"), HOME)
    calls.chosen(call("2", "cold"), HOME)
    assert (calls.share("hot", HOME), calls.share("cold", HOME)) == (0.0, 1.0)
