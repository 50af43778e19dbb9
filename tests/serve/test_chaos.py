"""Parts of the server are killed, and its config changes, under load: the short form of `make chaos`."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
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
from benchmarks.lib.target import registered
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes
from operations.guardian import MARKER
from tests.support.ingress import assert_right
from tests.support.marqo_client import MarqoClient
from tests.support.serve import SCENES, Serve, alive_nodes, downloads_from, sturdy_config
from tests.support.waiting import until

APP = "chaos"
LIMIT_S = 60.0
CLIENTS = 4
FALLBACK_S = 2.0
"""Ray alone needs three seconds to notice that HAProxy is gone."""
STOPPED_S = 1.0
LONG_TIMEOUT = {"downloadTimeoutMs": 60_000}
"""For pictures that are held back until the test releases them."""
MOST_HELD = 32


@pytest.fixture(scope="module")
def deploy(serve_instance: Serve) -> Iterator[Callable[..., None]]:
    """Deploys the application with two replicas of each deployment, changed as asked then and before."""

    options: dict[str, Any] = {"max_contents": 10_000}

    def changed(**changes: Any) -> None:
        options.update(changes)
        serve_instance.add(chaos_config(**options))

    changed()
    yield changed
    serve_instance.remove(APP)


def chaos_config(max_contents: int, **options: Any) -> dict[str, Any]:
    config = sturdy_config(APP, max_contents=max_contents)
    config["deployments"][0]["num_replicas"] = 2
    config["deployments"] = [one | options for one in config["deployments"]]
    return config


@pytest.fixture
def client(deploy: Callable[..., None], serve_instance: Serve) -> MarqoClient:
    return MarqoClient(f"{serve_instance.url}/{APP}")


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


def kill_at_work(load: KnownAnswers, kill_them: Callable[[], None]) -> float:
    """Kills as soon as a request has just been sent, and so is not answered yet. Returns when that began."""
    deadline = time.monotonic() + LIMIT_S
    while not 0 < load.longest_wait() < 0.005:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    began = time.monotonic()
    kill_them()
    return began


def assert_was_at_work(load: KnownAnswers, began: float) -> None:
    """A request had been sent to the server, and was not answered, when the killing began."""
    assert any(reply.sent < began < reply.ended and reply.outcome != "refused" for reply in load.replies)


def complete(victims: Victims) -> bool:
    return all(len(victims.replicas(one)) == 2 == running(one, APP) for one in DEPLOYMENTS)


def fallbacks() -> list[str]:
    """Fallback processes of this session's HAProxies that were killed. They are nobody's descendants any more."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        ours = variables.get(MARKER, "").startswith(f"{os.getpid()}.")
        if ours and any(word.endswith("fallback.cfg") for word in words):
            found.append(" ".join(words))
    return found


@contextmanager
def closed_port() -> Iterator[str]:
    """An address at which nobody listens, nor can while the context lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_killed_preprocessor_loses_no_request(client: MarqoClient, victims: Victims, pictures: list[str]) -> None:
    """It is killed while it downloads a picture of some of four requests. What it had is downloaded anew."""
    right = client.embed(pictures, "image")
    files = {"last.jpg": jpeg_bytes(SCENES[-1].draw(EVALUATION_SEEDS[len(SCENES) - 1]))}
    with ImageHost(files, address="127.0.0.2") as host, ThreadPoolExecutor(4) as pool:
        urls = [*pictures[:-1], host.url("/held/last.jpg")]
        requests = [pool.submit(client.embed, urls, "image", preprocessing=LONG_TIMEOUT) for _ in range(4)]
        until(lambda: host.in_flight == 4)
        victim = next(pid for pid in victims.replicas("Preprocessor") if downloads_from(pid, host))
        kill(victim)
        until(lambda: len(host.requests) > 4 and host.in_flight == 4, LIMIT_S)
        host.release()
        assert_right([request.result() for request in requests], right)
        assert_right(list(pool.map(lambda _: client.embed(pictures, "image"), range(8))), right)
    wait_until(lambda: complete(victims), "another replica", LIMIT_S)


def test_a_killed_encoder_loses_no_request(client: MarqoClient, victims: Victims) -> None:
    """It is killed while it works on a large request. Its CPU time tells: a third of what that takes is spent."""
    texts = [f"a text, number {i}, of some words that are not a search" for i in range(4096)]
    encoders = [psutil.Process(pid) for pid in victims.replicas("Encoder")]

    def spent() -> dict[psutil.Process, float]:
        return {encoder: encoder.cpu_times().user for encoder in encoders}

    client.embed(texts[:256])
    begin = sum(spent().values())
    right = client.embed(texts)
    whole = sum(spent().values()) - begin
    before = spent()
    with ThreadPoolExecutor(4) as pool:
        request = pool.submit(client.embed, texts)
        until(lambda: sum(spent().values()) - sum(before.values()) > whole / 3)
        victim = max(encoders, key=lambda encoder: encoder.cpu_times().user - before[encoder])
        assert not request.done()
        victim.kill()
        assert_right([request.result()], right)
        assert_right(list(pool.map(lambda _: client.embed(texts[:64]), range(8))), right[:64])
    wait_until(lambda: complete(victims), "another replica", LIMIT_S)


def test_a_killed_ingress_loses_no_request(load: KnownAnswers, victims: Victims) -> None:
    """It is stopped before, so that it surely has a request: one that waits longer than the other ingress takes."""
    ingress = psutil.Process(victims.replicas("Ingress")[0])
    ingress.suspend()
    try:
        wait_until(lambda: load.longest_wait() > STOPPED_S, "a request that it has", LIMIT_S)
        began = time.monotonic()
    finally:
        ingress.kill()
    wait_until(lambda: complete(victims), "another ingress", LIMIT_S)
    wait_for_right_answers(load)
    assert_was_at_work(load, began)
    assert failures(load.replies) == []


@pytest.mark.parametrize("part", ["haproxies", "proxy_actors"])
def test_a_killed_haproxy_loses_only_open_connections(load: KnownAnswers, victims: Victims, part: str) -> None:
    """Ray ends HAProxy together with the actor that supervises it; the fallback listens until both are replaced."""
    haproxies = victims.haproxies()
    pids = getattr(victims, part)()
    began = kill_at_work(load, lambda: kill(*pids))
    wait_until(lambda: set(victims.haproxies()) - set(haproxies), "another HAProxy", LIMIT_S)
    wait_for_right_answers(load)
    assert_was_at_work(load, began)
    assert set(counts(load.replies)) <= {"sent", "right", "lost", "refused"}, failures(load.replies)
    assert counts(load.replies).get("lost", 0) <= CLIENTS  # what each had in flight
    refused = [reply.sent - began for reply in load.replies if reply.outcome == "refused"]
    assert max(refused, default=0) < FALLBACK_S
    wait_until(lambda: not fallbacks(), "the fallback to go", LIMIT_S)


@pytest.mark.parametrize(("part", "dead"), [("haproxies", 0), ("proxy_actors", 0), ("haproxies", 1)])
def test_with_a_sidecar_haproxy_a_killed_haproxy_loses_no_request(
    questions: list[Question], serve_instance: Serve, victims: Victims, part: str, dead: int
) -> None:
    """Also where it is the last one, after those of nodes that are gone already."""
    haproxies = victims.haproxies()
    with (
        closed_port() as gone,
        beside_marqo(*[gone] * dead, urlsplit(serve_instance.url).netloc) as url,
        KnownAnswers([elsewhere(asked, url) for asked in questions], CLIENTS, period_s=0.1) as load,
    ):
        wait_for_right_answers(load)
        pids = getattr(victims, part)()
        began = kill_at_work(load, lambda: kill(*pids))
        wait_until(lambda: set(victims.haproxies()) - set(haproxies), "another HAProxy", LIMIT_S)
        wait_for_right_answers(load)
    assert_was_at_work(load, began)
    assert failures(load.replies) == []
    wait_until(lambda: not fallbacks(), "the fallback to go", LIMIT_S)


def test_a_sidecar_haproxy_answers_503_without_a_server() -> None:
    with closed_port() as closed, beside_marqo(closed) as url:
        reply = httpx.post(f"{url}/vectorise", content=b"", timeout=60)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
    assert "no inference server can be reached" in msgpack.unpackb(reply.content)["detail"]


def test_a_rolling_update_loses_no_request(load: KnownAnswers, victims: Victims, deploy: Callable[..., None]) -> None:
    old = {pid for deployment in DEPLOYMENTS for pid in victims.replicas(deployment)}
    deploy(max_contents=9_999)
    wait_until(lambda: complete(victims), "all replicas", LIMIT_S)
    assert not old & {pid for deployment in DEPLOYMENTS for pid in victims.replicas(deployment)}
    wait_for_right_answers(load)
    assert failures(load.replies) == []


def test_a_killed_node_loses_no_request(
    load: KnownAnswers,
    victims: Victims,
    deploy: Callable[..., None],
    serve_instance: Serve,
    client: MarqoClient,
    pictures: list[str],
) -> None:
    """A preprocessor of the node downloads a picture when it is killed. The last test of the application, which cannot
    have a second replica of anything on the node that is left."""
    right = client.embed(pictures[:1], "image")
    before = alive_nodes()
    node = Node(ray.get_runtime_context().gcs_address)
    files = {"0.jpg": jpeg_bytes(SCENES[0].draw(EVALUATION_SEEDS[0]))}
    with ImageHost(files, address="127.0.0.2") as host, ThreadPoolExecutor(MOST_HELD) as pool:
        try:
            (joined,) = alive_nodes() - before
            deploy(max_replicas_per_node=1)
            on_node = Victims(node.pid, serve_instance.url, APP)
            wait_until(lambda: all(on_node.replicas(one) for one in DEPLOYMENTS), "replicas on the node", LIMIT_S)
            wait_for_right_answers(load)
            held = ask_until_busy(client, host, pool, on_node.replicas("Preprocessor"))
            began = kill_at_work(load, node.kill)
        finally:
            node.kill()
        # Not their number: a download for an ingress that has died goes on until its time limit.
        wait_until(lambda: len(host.requests) > len(held), "another download", LIMIT_S)
        host.release()
        assert_right([one.result() for one in held], right)
    wait_for_right_answers(load, 60)
    assert_was_at_work(load, began)
    assert failures(load.replies) == []
    wait_until(lambda: joined not in alive_nodes(), "the node to be missed", LIMIT_S)


def ask_until_busy(client: MarqoClient, host: ImageHost, pool: Executor, pids: Sequence[int]) -> list[Future[Any]]:
    """Asks for one more picture at a time, which the host holds back, until one of the processes downloads one."""
    asked: list[Future[Any]] = []
    while not any(downloads_from(pid, host) for pid in pids):
        assert len(asked) < MOST_HELD
        url = host.url(f"/held/0.jpg?{len(asked)}")
        asked.append(pool.submit(client.embed, [url], "image", preprocessing=LONG_TIMEOUT))
        wait_until(lambda: host.in_flight == len(asked), "a download", LIMIT_S)
    return asked
