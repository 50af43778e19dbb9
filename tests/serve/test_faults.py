"""Replicas die, clients misbehave, too much arrives: every client still gets its right answer, or a prompt refusal."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import ROOT
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import SCENES, Serve, replica_pids, sturdy_config

CRASHING_DECODER = ROOT / "tests" / "support" / "crash"


@pytest.fixture(scope="module")
def pictures() -> Iterator[list[str]]:
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(SCENES)}
    with ImageHost(files) as host:
        yield [host.url(f"/ok/{name}") for name in files]


def vectors(client: MarqoClient, urls: list[str]) -> np.ndarray:
    return np.stack([vector for ((_, vector),) in client.results(urls, "image")])


@pytest.mark.parametrize("deployment", ["Preprocessor", "Encoder"])
def test_a_killed_replica_costs_nobody_an_answer(
    application: Callable[[dict[str, Any]], MarqoClient], pictures: list[str], deployment: str
) -> None:
    client = application(sturdy_config())
    right = vectors(client, pictures)
    killed = threading.Event()
    after = threading.Semaphore(0)

    def work(_: int) -> list[np.ndarray]:
        answers = []
        while not killed.is_set() or after.acquire(blocking=False):
            answers.append(vectors(client, pictures))
        return answers

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work, i) for i in range(4)]
        victim = replica_pids(deployment)[0]
        os.kill(victim, signal.SIGKILL)
        for _ in range(8):
            after.release()
        killed.set()
        answers = [answer for future in futures for answer in future.result()]
    assert len(answers) >= 8
    assert all(np.abs(answer - right).max() < 1e-5 for answer in answers)


def test_a_content_that_kills_its_decoder_costs_itself_only(
    application: Callable[[dict[str, Any]], MarqoClient], pictures: list[str]
) -> None:
    """One preprocessor has everybody's pictures in hand when it dies. It dies once, and nobody else is blamed. Only a
    plain JPEG can do it, since others are decoded in other processes."""
    config = sturdy_config(name="poisoned", replicas=1)
    hook = {"runtime_env": {"env_vars": {"PYTHONPATH": str(CRASHING_DECODER)}}}
    config["deployments"][1]["ray_actor_options"] |= hook
    client = application(config)
    right = vectors(client, pictures)
    first = set(replica_pids("Preprocessor", "poisoned"))
    plain = jpeg_bytes(SCENES[0].draw(EVALUATION_SEEDS[0]))
    files = {"crash": plain[:2] + b"\xff\xfe\0\x07CRASH" + plain[2:], "other": b"CRASH" + bytes(100)}
    with ImageHost(files) as host, ThreadPoolExecutor(4) as pool:
        poison = host.url("/ok/crash?delay=0.3")
        # They are in the decoder's queue, or on their way, when the poison arrives.
        slow = [f"{url}?delay=0.4" for url in pictures]
        others = [pool.submit(vectors, client, slow) for _ in range(3)]
        results = client.results([*pictures[:3], poison, *pictures[3:6]], "image")
        second = set(replica_pids("Preprocessor", "poisoned"))
        again = client.results([poison], "image")
        assert all(np.abs(other.result() - right).max() < 1e-5 for other in others)
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
    assert limited.results(["one more"])


@pytest.mark.parametrize("contents", [["a"] * 9, ["a" * 20_000]], ids=["contents", "bytes"])
def test_a_request_that_is_too_large(limited: MarqoClient, contents: list[str]) -> None:
    status, body = limited.vectorise(contents)
    assert status == 413
    assert "send several requests" in body["detail"]
    assert limited.results(["a"])


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
        return reply.headers["X-Embedding-Fingerprint"]

    assert fingerprint("demo/clip") == fingerprint("demo/clip")
    assert fingerprint("demo/clip") != fingerprint("random/small")
