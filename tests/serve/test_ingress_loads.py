"""Models that requests describe, through the whole graph: slow downloads delay no other model, many models take bounded
memory, and some are private."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import requests

from benchmarks.lib.image_host import ImageHost
from tests.support.hub_host import HubHost
from tests.support.ingress import drawn, request, vectors
from tests.support.marqo_client import MarqoClient
from tests.support.serve import Serve, replica_pids
from tests.support.waiting import until

APP = "loads"
PROMPT_S = 10.0
"""Far below the hour that a download may take, far above what two busy cores need."""
CLIP = {"name": "ViT-B-32", "dimensions": 512, "type": "open_clip"}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubHost]:
    with HubHost({}) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(serve_instance: Serve, hub: HubHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarqoClient]:
    models = {
        "model_sources": ["registry", "hub", "url"],
        "cache_dir": str(tmp_path_factory.mktemp("models")),
        "allowed_networks": "127.0.0.0/8",
        "share_private_models": False,
    }
    share = {"num_cpus": 0.1}
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": "", "HF_HOME": ""}
    config = {
        "name": APP,
        "route_prefix": f"/{APP}",
        "import_path": "graph:build_app",
        "args": {"encoder": {"device": "cpu", "max_models": 50, "models": models}},
        "deployments": [
            {"name": "Ingress", "ray_actor_options": share},
            {"name": "Preprocessor", "ray_actor_options": share},
            {"name": "Encoder", "ray_actor_options": {**share, "runtime_env": {"env_vars": env}}},
        ],
    }
    yield MarqoClient(serve_instance.add(config))
    serve_instance.remove(APP)


def random_model(number: int, characters: int = 0) -> dict[str, Any]:
    return {"type": "random", "name": f"random/{number}", "dimensions": 32, "notes": "x" * characters}


def test_downloads_that_trickle_hold_up_nobody(client: MarqoClient) -> None:
    """Not models without files, nor one from the disk, nor the hub's; requests beyond the queue's limit get a 503."""
    client.embed(["a"], model="random/loaded", properties=random_model(0))
    with ThreadPoolExecutor(64) as pool:
        with ImageHost(address="0.0.0.0") as host:

            def slow(number: int) -> tuple[int, str]:
                url = host.url(f"/drip?every=0.1&{number}", host=f"127.0.1.{number % 32 + 1}")
                with MarqoClient(client.url) as attacker:
                    status, body = attacker.vectorise(["a"], model="slow", properties={**CLIP, "url": url})
                return status, body["detail"]

            attack = [pool.submit(slow, number) for number in range(64)]
            until(lambda: host.in_flight == 8 and any(one.done() for one in attack), 60)
            started = time.monotonic()
            client.embed(["a"], model="random/loaded", properties=random_model(0))
            client.embed(["a"], model="random/new", properties=random_model(1))
            client.embed(["a red circle"], model="demo/clip")
            status, body = client.vectorise(["a"], model="mine", properties={**CLIP, "name": "hf-hub:me/unknown"})
            assert status == 400
            assert "does not exist" in body["detail"]
            assert time.monotonic() - started < PROMPT_S
            assert host.in_flight == 8
            early = {one for one in attack if one.done()}
        answers = {one: one.result() for one in attack}
    for one, (status, detail) in answers.items():
        refused = status == 503 and "downloads of weights from the same source wait for their turn already" in detail
        broken = status == 400 and "downloading http://127.0.1." in detail
        assert refused if one in early else refused or broken, (status, detail)
    assert {status for status, _ in answers.values()} == {400, 503}


def encoder() -> psutil.Process:
    (pid,) = replica_pids("Encoder", APP)
    return psutil.Process(pid)


def test_many_models_with_long_properties(client: MarqoClient) -> None:
    def ask(number: int) -> None:
        client.embed(["a"], model=f"many/{number}", properties=random_model(number, 90_000))

    for number in range(100):
        ask(number)
    before = encoder().memory_info().rss
    for number in range(100, 600):
        ask(number)
    for query in ("", "?detailed=false", "?detailed=true", "?detailed=true&replicas=true"):
        reply = client.get(f"/models{query}")
        assert reply.status_code == 200
        assert "many/599" in reply.text
        assert "many/99" not in reply.text
        assert len(reply.content) < 100_000
    (line,) = [line for line in client.get("/models?detailed=true").json()["models"] if "many/599" in line["modelName"]]
    listed = json.loads(line["modelProperties"])
    assert listed == {"name": "random/599", "type": "random", "dimensions": 32, "omitted": listed["omitted"]}
    assert listed["omitted"].endswith(" characters")
    assert client.delete(f"/models?model_name={line['modelName']}").status_code == 200
    assert "many/599" not in client.get("/models").text
    # 45 MB of properties were named.
    assert encoder().memory_info().rss - before < 20 * 2**20


def test_many_long_names_are_listed_as_far_as_a_message_goes(client: MarqoClient) -> None:
    for number in range(50):
        name = f"{number}" + "😀" * 20_000
        client.embed(["a"], model=name, properties=random_model(number))
    reply = client.get("/models")
    assert reply.status_code == 200
    assert client.delete("/models?model_name=nobody").status_code == 200


def test_a_private_model_is_for_its_owner(client: MarqoClient) -> None:
    """Others load one of their own, which a random model lets them, and see no more of it than its name."""
    properties = {**random_model(7), "notes": "confidential"}

    def ask(token: str | None) -> None:
        auth = {} if token is None else {"modelAuth": {"hf": {"token": token}}}
        config = {"modelName": "private/model", "modelProperties": properties, **auth}
        status, body = client.request(request(["a"], modelConfig=config))
        assert status == 200, body
        (drawn_one,) = vectors(body["result"])
        assert abs(drawn_one - drawn(["a"])[0]).max() < 1e-6

    ask("hf_one")
    ask("hf_one")
    lines = client.get("/models?detailed=true&replicas=true").json()["models"]
    (line,) = [line for line in lines if line["modelName"].startswith("private/model")]
    assert (line["modelName"], line["modelProperties"]) == ("private/model", "{}")
    assert [holder["bytes"] for holder in line["replicas"]] == [0]
    everything = client.get("/models?detailed=true&replicas=true").text
    assert "confidential" not in everything
    assert "hf_one" not in everything
    ask("hf_two")
    ask(None)
    keys = [line["modelName"] for line in client.get("/models?detailed=true").json()["models"]]
    assert sorted(key.partition("||")[0] for key in keys if key.startswith("private")) == ["private/model"] * 2
    assert client.delete("/models?model_name=private/model").status_code == 200
    assert "private/model" not in client.get("/models").text


def test_dead_hosts_and_unknown_repositories_cost_one_request_each(client: MarqoClient) -> None:
    session = requests.Session()
    before = encoder().memory_info().rss
    for number in range(100):
        for reason, properties in (
            (f"downloading http://127.0.0.1:9/{number}.pt failed", {"url": f"http://127.0.0.1:9/{number}.pt"}),
            ("does not exist", {"name": f"hf-hub:me/{number}"}),
            ("needs the source 'path'", {"localpath": f"/{number}"}),
        ):
            status, body = client.vectorise(["a"], model=f"dead/{number}", properties=CLIP | properties)
            assert status == 400
            assert reason in body["detail"], body
    assert session.get(client.url + "/models", timeout=10).ok
    assert encoder().memory_info().rss - before < 30 * 2**20
