"""Parts fail while clients ask: every client still gets its right answer, and `/healthz` says what is the matter."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgpack
import pytest

from benchmarks.lib.cluster import Victims, kill, wait_until
from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import ROOT
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes
from tests.support.ingress import assert_right, is_error
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.metrics import wait_until_all_but_downloads_are_done
from tests.support.serve import SCENES, Serve, sturdy_config
from tests.support.waiting import until

APP = "single"
CALLS = 4
"""That a replica takes at a time."""
RESTART_S = 60.0
LONG_TIMEOUT = {"downloadTimeoutMs": 60_000}
"""For pictures that are held back until the test releases them."""
CRASHING_DECODER = ROOT / "tests" / "support" / "crash"


@pytest.fixture(scope="module")
def single(serve_instance: Serve) -> Iterator[MarqoClient]:
    """An application with one replica of each deployment, whose preprocessor can be killed by a picture."""
    config = sturdy_config(APP, replicas=1, image_chunk=32)
    for deployment in config["deployments"][1:]:
        deployment["max_ongoing_requests"] = CALLS
    hook = {"runtime_env": {"env_vars": {"PYTHONPATH": str(CRASHING_DECODER)}}}
    config["deployments"][1]["ray_actor_options"] = config["deployments"][1]["ray_actor_options"] | hook
    yield MarqoClient(serve_instance.add(config))
    serve_instance.remove(APP)


@pytest.fixture
def victims(single: MarqoClient) -> Victims:
    return Victims(os.getpid(), single.url, APP)


def wait_for_health(client: MarqoClient) -> None:
    wait_until(lambda: client.get("/healthz").status_code == 200, "health", RESTART_S)


def test_a_content_that_kills_its_decoder_costs_itself_only(
    single: MarqoClient, victims: Victims, pictures: list[str]
) -> None:
    """One preprocessor works for four clients when it dies. It dies once, and no other item gets an error. Only a plain
    JPEG can do it, since other pictures are decoded in subprocesses."""
    right = single.embed(pictures, "image")
    first = set(victims.replicas("Preprocessor"))
    plain = jpeg_bytes(SCENES[0].draw(EVALUATION_SEEDS[0]))
    files = {"crash": plain[:2] + b"\xff\xfe\0\x07CRASH" + plain[2:], "other": b"CRASH" + bytes(100)}
    good = {f"{i}.jpg": jpeg_bytes(SCENES[i].draw(EVALUATION_SEEDS[i])) for i in range(2)}
    with ImageHost(files) as host, ImageHost(good, address="127.0.0.2") as slow, ThreadPoolExecutor(4) as pool:
        poison = host.url("/ok/crash")
        held = [slow.url(f"/held/{name}") for name in good]
        others = [pool.submit(single.embed, held, "image", preprocessing=LONG_TIMEOUT) for _ in range(3)]
        until(lambda: slow.in_flight == 6)
        results = single.results([*pictures[:3], poison, *pictures[3:6]], "image")
        second = set(victims.replicas("Preprocessor"))
        again = single.results([poison], "image")
        until(lambda: len(slow.requests) >= 12 and slow.in_flight == 6, RESTART_S)  # all were lost, and begin anew
        slow.release()
        assert_right([other.result() for other in others], right[:2])
        harmless = [single.results([host.url("/ok/other")], "image")[0]["error_message"] for _ in range(2)]
    assert [isinstance(item, dict) for item in results] == [False] * 3 + [True] + [False] * 3
    assert "crashed its decoder (exit code -11)" in results[3]["error_message"]
    assert "crashed its decoder and is refused" in again[0]["error_message"]
    assert "crashed its decoder (exit code -11)" in harmless[0]
    assert "crashed its decoder and is refused" in harmless[1]
    assert len(first) == len(second) == 1
    assert first != second
    assert second == set(victims.replicas("Preprocessor"))
    wait_for_health(single)


def test_a_lost_preprocessor_costs_no_answer_while_others_wait(single: MarqoClient, victims: Victims) -> None:
    """What was encoded before is there; the rest is prepared again."""
    wait_for_health(single)
    names = [f"{i}.jpg" for i in range(4)]
    files = {name: jpeg_bytes(SCENES[i].draw(EVALUATION_SEEDS[i])) for i, name in enumerate(names)}
    with ImageHost(files) as host, ThreadPoolExecutor(1) as pool:
        right = single.embed([host.url(f"/ok/{name}") for name in names], "image")
        begun = len(host.requests)
        urls = [*(host.url(f"/ok/{name}?again") for name in names[:3]), host.url("/held/3.jpg")]
        late = pool.submit(single.embed, urls, "image", preprocessing=LONG_TIMEOUT)
        try:
            wait_until_all_but_downloads_are_done(APP, 1)
            kill(*victims.replicas("Preprocessor"))
        finally:
            host.release()
        assert_right([late.result()], right)
        assert [request.path for request in host.requests[begun + 4 :]] == ["/held/3.jpg"]


@pytest.mark.parametrize("deployment", ["Encoder", "Preprocessor"])
def test_healthz_fails_while_the_graph_cannot_embed(single: MarqoClient, victims: Victims, deployment: str) -> None:
    wait_for_health(single)
    started = time.monotonic()
    kill(*victims.replicas(deployment))
    reply = single.get("/healthz")
    assert reply.status_code == 503
    assert deployment.lower() in reply.json()["detail"]
    assert time.monotonic() - started < 2
    wait_for_health(single)


def test_a_busy_graph_is_healthy_at_once(single: MarqoClient) -> None:
    """The preprocessor has as many calls as it takes, and others wait."""
    with ImageHost() as host, ThreadPoolExecutor(2 * CALLS) as pool:
        urls = [host.url(f"/hang?{i}") for i in range(2 * CALLS)]
        timeout = {"downloadTimeoutMs": 3000}
        asking = [pool.submit(single.results, [url], "image", preprocessing=timeout) for url in urls]
        until(lambda: host.in_flight == CALLS)
        latencies = []
        for _ in range(10):
            started = time.monotonic()
            with MarqoClient(single.url) as newcomer:
                assert newcomer.get("/healthz").status_code == 200
            latencies.append(time.monotonic() - started)
        assert host.in_flight == CALLS
        assert not any(one.done() for one in asking)
        answers = [answer for one in asking for answer in one.result()]
    assert all(is_error(answer) and "3000 ms" in answer["error_message"] for answer in answers)
    # A question that waited for a preprocessor would take as long as the downloads.
    assert sorted(latencies)[5] < 1


REQUEST = {
    "modality": "language",
    "contents": ["one more"],
    "modelConfig": {"modelName": "demo/clip"},
    "preprocessingConfig": {"modality": "language"},
}


def test_the_fingerprint_tells_models_apart(marqo: MarqoClient) -> None:
    def fingerprint(model: str) -> str:
        request = REQUEST | {"modelConfig": {"modelName": model}}
        headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "X-Embedding-Fingerprint": "1"}
        reply: httpx.Response = marqo.post(msgpack.packb(request), headers)
        assert reply.status_code == 200
        return reply.headers["X-Embedding-Fingerprint"]

    assert fingerprint("demo/clip") == fingerprint("demo/clip")
    assert fingerprint("demo/clip") != fingerprint("random/small")
