"""Replicas die, clients misbehave, too much arrives: every client still gets its right answer, or a prompt refusal."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgpack
import numpy as np
import psutil
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import ROOT
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import SCENES, Serve, replica_pids, sturdy_config
from tests.support.waiting import until

RESTART_S = 60.0
LONG_TIMEOUT = {"downloadTimeoutMs": 60_000}
"""For pictures that are held back until the test releases them."""
CRASHING_DECODER = ROOT / "tests" / "support" / "crash"


@pytest.fixture(scope="module")
def pictures() -> Iterator[list[str]]:
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(SCENES)}
    with ImageHost(files) as host:
        yield [host.url(f"/ok/{name}") for name in files]


def vectors(client: MarqoClient, contents: list[str], modality: str = "image", **options: Any) -> np.ndarray:
    return np.stack([vector for ((_, vector),) in client.results(contents, modality, **options)])


def assert_right(answers: list[np.ndarray], right: np.ndarray) -> None:
    assert all(np.abs(answer - right).max() < 1e-5 for answer in answers)


def downloads_from(pid: int, host: ImageHost) -> bool:
    """Whether a process has a connection to the host."""
    connections = psutil.Process(pid).net_connections("tcp")
    return any(connection.raddr and connection.raddr.port == host.port for connection in connections)


def test_a_killed_preprocessor_costs_nobody_an_answer(
    application: Callable[[dict[str, Any]], MarqoClient], pictures: list[str]
) -> None:
    """It is killed while it downloads a picture of some of four requests. What it had is downloaded anew."""
    client = application(sturdy_config())
    right = vectors(client, pictures)
    files = {"last.jpg": jpeg_bytes(SCENES[-1].draw(EVALUATION_SEEDS[len(SCENES) - 1]))}
    with ImageHost(files, address="127.0.0.2") as host, ThreadPoolExecutor(4) as pool:
        urls = [*pictures[:-1], host.url("/held/last.jpg")]
        requests = [pool.submit(vectors, client, urls, preprocessing=LONG_TIMEOUT) for _ in range(4)]
        until(lambda: host.in_flight == 4)
        victim = next(pid for pid in replica_pids("Preprocessor") if downloads_from(pid, host))
        psutil.Process(victim).kill()
        until(lambda: len(host.requests) > 4 and host.in_flight == 4, RESTART_S)
        host.release()
        assert_right([request.result() for request in requests], right)
        assert_right(list(pool.map(lambda _: vectors(client, pictures), range(8))), right)


def test_a_killed_encoder_costs_nobody_an_answer(application: Callable[[dict[str, Any]], MarqoClient]) -> None:
    """It is killed while it works on a large request. Its CPU time tells: a third of what that takes is spent."""
    client = application(sturdy_config())
    texts = [f"a text, number {i}, of some words that are not a search" for i in range(4096)]
    encoders = [psutil.Process(pid) for pid in replica_pids("Encoder")]

    def spent() -> dict[psutil.Process, float]:
        return {encoder: encoder.cpu_times().user for encoder in encoders}

    vectors(client, texts[:256], "language")
    begin = sum(spent().values())
    right = vectors(client, texts, "language")
    whole = sum(spent().values()) - begin
    before = spent()
    with ThreadPoolExecutor(4) as pool:
        request = pool.submit(vectors, client, texts, "language")
        until(lambda: sum(spent().values()) - sum(before.values()) > whole / 3)
        victim = max(encoders, key=lambda encoder: encoder.cpu_times().user - before[encoder])
        assert not request.done()
        victim.kill()
        assert_right([request.result()], right)
        assert_right(list(pool.map(lambda _: vectors(client, texts[:64], "language"), range(8))), right[:64])


def test_a_content_that_kills_its_decoder_costs_itself_only(
    application: Callable[[dict[str, Any]], MarqoClient], pictures: list[str]
) -> None:
    """One preprocessor works for four clients when it dies. It dies once, and no other item gets an error. Only a plain
    JPEG can do it, since other pictures are decoded in subprocesses."""
    config = sturdy_config(name="poisoned", replicas=1)
    hook = {"runtime_env": {"env_vars": {"PYTHONPATH": str(CRASHING_DECODER)}}}
    config["deployments"][1]["ray_actor_options"] |= hook
    client = application(config)
    right = vectors(client, pictures)
    first = set(replica_pids("Preprocessor", "poisoned"))
    plain = jpeg_bytes(SCENES[0].draw(EVALUATION_SEEDS[0]))
    files = {"crash": plain[:2] + b"\xff\xfe\0\x07CRASH" + plain[2:], "other": b"CRASH" + bytes(100)}
    good = {f"{i}.jpg": jpeg_bytes(SCENES[i].draw(EVALUATION_SEEDS[i])) for i in range(2)}
    with ImageHost(files) as host, ImageHost(good, address="127.0.0.2") as slow, ThreadPoolExecutor(4) as pool:
        poison = host.url("/ok/crash")
        held = [slow.url(f"/held/{name}") for name in good]
        others = [pool.submit(vectors, client, held, preprocessing=LONG_TIMEOUT) for _ in range(3)]
        until(lambda: slow.in_flight == 6)
        results = client.results([*pictures[:3], poison, *pictures[3:6]], "image")
        second = set(replica_pids("Preprocessor", "poisoned"))
        again = client.results([poison], "image")
        until(lambda: len(slow.requests) >= 12 and slow.in_flight == 6, RESTART_S)  # all were lost, and begin anew
        slow.release()
        assert_right([other.result() for other in others], right[:2])
        harmless = [client.results([host.url("/ok/other")], "image")[0]["error_message"] for _ in range(2)]
    assert [isinstance(item, dict) for item in results] == [False] * 3 + [True] + [False] * 3
    assert "crashed its decoder (exit code -11)" in results[3]["error_message"]
    assert "crashed its decoder and is refused" in again[0]["error_message"]
    assert "crashed its decoder (exit code -11)" in harmless[0]
    assert "crashed its decoder and is refused" in harmless[1]
    assert len(first) == len(second) == 1
    assert first != second
    assert second == set(replica_pids("Preprocessor", "poisoned"))


TOKEN = "s3cret"
REQUEST = {
    "modality": "language",
    "contents": ["one more"],
    "modelConfig": {"modelName": "demo/clip"},
    "preprocessingConfig": {"modality": "language"},
}


@pytest.fixture(scope="module")
def limited(serve_instance: Serve) -> Iterator[MarqoClient]:
    """An application with narrow limits that asks for a token."""
    limits = {
        "max_items_in_flight": 8,
        "max_downloads_in_flight": 0,
        "max_contents": 8,
        "max_body_bytes": 10_000,
        "max_text_chars": 1000,
    }
    config = sturdy_config(name="limited", replicas=1, **limits)
    config["deployments"][0]["ray_actor_options"] |= {"runtime_env": {"env_vars": {"MARQO_INFERENCE_TOKEN": TOKEN}}}
    serve_instance.deploy(config)
    yield MarqoClient(serve_instance.url + "/limited", token=TOKEN)
    serve_instance.deploy()


def test_too_much_at_once_is_refused_promptly(limited: MarqoClient, image_host: ImageHost) -> None:
    hanging = [image_host.url(f"/hang?{i}") for i in range(8)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(limited.vectorise, hanging, "image", preprocessing={"downloadTimeoutMs": 5000})
        assert image_host.wait_for("in_flight", 8)
        started = time.monotonic()
        reply = limited.post(msgpack.packb(REQUEST))
        assert reply.status_code == 503
        assert time.monotonic() - started < 2
        assert int(reply.headers["retry-after"]) >= 1
        assert "busy" in msgpack.unpackb(reply.content)["detail"]
        status, _ = first.result()
        assert status == 200
    limited.embed(["one more"])


@pytest.mark.parametrize("contents", [["a"] * 9, ["a" * 20_000]], ids=["contents", "bytes"])
def test_a_request_that_is_too_large(limited: MarqoClient, contents: list[str]) -> None:
    status, body = limited.vectorise(contents)
    assert status == 413
    assert "send several requests" in body["detail"]
    limited.embed(["a"])


def test_a_text_that_is_too_long_is_its_own_error(limited: MarqoClient) -> None:
    short, long = limited.results(["short", "long" * 500])
    assert isinstance(short, list)
    assert "2000 characters" in long["error_message"]


@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_token_is_asked_for_if_one_is_set(limited: MarqoClient, token: str | None) -> None:
    status, body = MarqoClient(limited.url, token=token).vectorise(["hi"])
    assert status == 401
    assert TOKEN not in str(body)


def test_the_fingerprint_tells_models_apart(marqo: MarqoClient) -> None:
    def fingerprint(model: str) -> str:
        request = REQUEST | {"modelConfig": {"modelName": model}}
        headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "X-Embedding-Fingerprint": "1"}
        reply: httpx.Response = marqo.post(msgpack.packb(request), headers)
        assert reply.status_code == 200
        return reply.headers["X-Embedding-Fingerprint"]

    assert fingerprint("demo/clip") == fingerprint("demo/clip")
    assert fingerprint("demo/clip") != fingerprint("random/small")
