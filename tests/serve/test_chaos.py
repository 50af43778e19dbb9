"""Parts of the server are killed, and its config changes, under load: the short form of `make chaos`."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgpack
import psutil
import pytest
import ray

from benchmarks.lib.cluster import DEPLOYMENTS, Node, Victims, beside_marqo, kill, running, wait_until
from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.known_answers import KnownAnswers, Question, counts, elsewhere, failures, question
from benchmarks.lib.process import free_port
from benchmarks.lib.target import registered
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes
from tests.support.ingress import is_error
from tests.support.marqo_client import MarqoClient
from tests.support.serve import SCENES, Serve, sturdy_config

APP = "chaos"
LIMIT_S = 60.0
CLIENTS = 4
FALLBACK_S = 2.0
"""Ray alone needs three seconds to notice that HAProxy is gone."""


@pytest.fixture(scope="module")
def pictures() -> Iterator[list[str]]:
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(SCENES)}
    with ImageHost(files) as host:
        yield [host.url(f"/ok/{name}") for name in files]


@pytest.fixture(scope="module")
def deploy(serve_instance: Serve) -> Iterator[Callable[..., None]]:
    """Deploys the application with two replicas of each deployment, changed as asked."""

    def changed(**options: Any) -> None:
        serve_instance.deploy(chaos_config(**options))

    changed()
    yield changed
    serve_instance.deploy()


def chaos_config(max_contents: int = 1000, **options: Any) -> dict[str, Any]:
    config = sturdy_config(APP, max_contents=max_contents)
    config["deployments"][0]["num_replicas"] = 2
    config["deployments"] = [one | options for one in config["deployments"]]
    return config


@pytest.fixture
def questions(deploy: Callable[..., None], serve_instance: Serve, pictures: list[str]) -> list[Question]:
    url = f"{serve_instance.url}/{APP}"
    texts = [scene.caption for scene in SCENES]
    return [
        question("pictures", registered(url, "demo/clip"), pictures, 6),
        question("texts", registered(url, "demo/clip", "language"), texts, 4),
    ]


@pytest.fixture
def load(questions: list[Question]) -> Iterator[KnownAnswers]:
    """Four clients whose right answers are known, all of which have been right for a moment."""
    with KnownAnswers(questions, CLIENTS, period_s=0.2) as load:
        wait_for_right_answers(load)
        yield load


@pytest.fixture(scope="module")
def victims(serve_instance: Serve) -> Victims:
    return Victims(os.getpid(), serve_instance.url, APP)


def wait_for_right_answers(load: KnownAnswers, count: int = 20) -> None:
    """The next ones, all of them."""
    begin = time.monotonic()

    def right() -> bool:
        latest = load.since(begin)[-count:]
        return len(latest) == count and {reply.outcome for reply in latest} == {"right"}

    wait_until(right, "right answers", LIMIT_S)


Killing = tuple[float, float]
"""When it began and ended, by time.monotonic()."""


def kill_at_work(load: KnownAnswers, kill_them: Callable[[], None]) -> Killing:
    """Kills as soon as a request has just been sent, and so is not answered yet."""
    deadline = time.monotonic() + LIMIT_S
    while not 0 < load.longest_wait() < 0.005:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    began = time.monotonic()
    kill_them()
    return began, time.monotonic()


def assert_was_at_work(load: KnownAnswers, killing: Killing) -> None:
    began, ended = killing
    assert any(reply.sent < ended and reply.ended > began for reply in load.replies)


def complete(victims: Victims) -> bool:
    return all(len(victims.replicas(one)) == 2 == running(one, APP) for one in DEPLOYMENTS)


def fallbacks() -> list[str]:
    """Fallback processes of a HAProxy that was killed, of any server."""
    words = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [" ".join(line) for line in words if any(word.endswith("fallback.cfg") for word in line)]


def test_a_killed_ingress_costs_nobody_an_answer(load: KnownAnswers, victims: Victims) -> None:
    pid = victims.replicas("Ingress")[0]
    killing = kill_at_work(load, lambda: kill(pid))
    wait_until(lambda: complete(victims), "another ingress", LIMIT_S)
    wait_for_right_answers(load)
    assert_was_at_work(load, killing)
    assert failures(load.replies) == []


@pytest.mark.parametrize("part", ["haproxies", "proxy_actors"])
def test_a_killed_front_door_costs_connections_only(load: KnownAnswers, victims: Victims, part: str) -> None:
    """Ray ends HAProxy together with the actor that supervises it; the fallback listens until both are replaced."""
    doors = victims.haproxies()
    pids = getattr(victims, part)()
    killing = kill_at_work(load, lambda: kill(*pids))
    wait_until(lambda: set(victims.haproxies()) - set(doors), "another HAProxy", LIMIT_S)
    wait_for_right_answers(load)
    assert_was_at_work(load, killing)
    assert set(counts(load.replies)) <= {"sent", "right", "lost", "refused"}, failures(load.replies)
    assert counts(load.replies).get("lost", 0) <= CLIENTS  # what each had in flight
    refused = [reply.sent - killing[0] for reply in load.replies if reply.outcome == "refused"]
    assert max(refused, default=0) < FALLBACK_S
    wait_until(lambda: not fallbacks(), "the fallback to go", LIMIT_S)


@pytest.mark.parametrize(("part", "dead"), [("haproxies", 0), ("proxy_actors", 0), ("haproxies", 1)])
def test_with_a_haproxy_beside_marqo_a_killed_front_door_costs_nobody_an_answer(
    questions: list[Question], serve_instance: Serve, victims: Victims, part: str, dead: int
) -> None:
    """Also where it is the last one, after those of nodes that are gone already."""
    doors = victims.haproxies()
    gone = [f"127.0.0.1:{free_port()}" for _ in range(dead)]
    with (
        beside_marqo(*gone, urlsplit(serve_instance.url).netloc) as url,
        KnownAnswers([elsewhere(asked, url) for asked in questions], CLIENTS, period_s=0.1) as load,
    ):
        wait_for_right_answers(load)
        pids = getattr(victims, part)()
        killing = kill_at_work(load, lambda: kill(*pids))
        wait_until(lambda: set(victims.haproxies()) - set(doors), "another HAProxy", LIMIT_S)
        wait_for_right_answers(load)
    assert_was_at_work(load, killing)
    assert failures(load.replies) == []
    wait_until(lambda: not fallbacks(), "the fallback to go", LIMIT_S)


def test_a_haproxy_beside_marqo_says_so_if_there_is_no_server() -> None:
    with beside_marqo(f"127.0.0.1:{free_port()}") as url:
        reply = httpx.post(f"{url}/vectorise", content=b"", timeout=60)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
    assert "no inference server can be reached" in msgpack.unpackb(reply.content)["detail"]


def test_a_rolling_update_costs_nobody_an_answer(
    load: KnownAnswers, victims: Victims, deploy: Callable[..., None]
) -> None:
    old = {pid for deployment in DEPLOYMENTS for pid in victims.replicas(deployment)}
    deploy(max_contents=999)
    wait_until(lambda: complete(victims), "all replicas", LIMIT_S)
    assert not old & {pid for deployment in DEPLOYMENTS for pid in victims.replicas(deployment)}
    wait_for_right_answers(load)
    assert failures(load.replies) == []


def test_a_killed_node_costs_nobody_an_answer(
    load: KnownAnswers, victims: Victims, deploy: Callable[..., None], serve_instance: Serve
) -> None:
    node = Node(ray.get_runtime_context().gcs_address)
    try:
        deploy(max_replicas_per_node=1)
        on_node = Victims(node.pid, serve_instance.url, APP)
        wait_until(lambda: all(on_node.replicas(one) for one in DEPLOYMENTS), "replicas on the node", LIMIT_S)
        wait_for_right_answers(load)
        killing = kill_at_work(load, node.kill)
    except BaseException:
        node.kill()
        raise
    wait_for_right_answers(load, 60)
    assert_was_at_work(load, killing)
    assert failures(load.replies) == []


@pytest.mark.parametrize("deployment", ["Encoder", "Preprocessor"])
def test_healthz_fails_while_the_graph_cannot_embed(
    application: Callable[[dict[str, Any]], MarqoClient], deployment: str
) -> None:
    client = application(sturdy_config(name="mortal", replicas=1))
    victims = Victims(os.getpid(), client.url, "mortal")
    assert client.get("/healthz").status_code == 200
    started = time.monotonic()
    kill(*victims.replicas(deployment))
    reply = client.get("/healthz")
    assert reply.status_code == 503
    assert deployment.lower() in reply.json()["detail"]
    assert time.monotonic() - started < 2
    wait_until(lambda: client.get("/healthz").status_code == 200, "health", LIMIT_S)


def test_a_busy_graph_is_healthy_at_once(
    application: Callable[[dict[str, Any]], MarqoClient], image_host: ImageHost
) -> None:
    """Every preprocessor has as many calls as it takes, and others wait."""
    config = sturdy_config(name="busy", replicas=1)
    for deployment in config["deployments"][1:]:
        deployment["max_ongoing_requests"] = 1
    client = application(config)
    client.embed(["warm"])
    hanging = [image_host.url(f"/hang?busy={i}") for i in range(8)]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.results, hanging, "image", preprocessing={"downloadTimeoutMs": 3000})
        assert image_host.wait_for("in_flight", 4)
        latencies = []
        for _ in range(10):
            started = time.monotonic()
            assert MarqoClient(client.url).get("/healthz").status_code == 200
            latencies.append(time.monotonic() - started)
        assert not asking.done()
        assert all(map(is_error, asking.result()))
    assert sorted(latencies)[5] < 0.25
