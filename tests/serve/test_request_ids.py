"""The id of a request: in every answer, and in the log lines of all three deployments."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgpack
import psutil
import pytest

from benchmarks.lib.process import free_port
from tests.support.ingress import demo_checkpoint, request
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import replica_pids
from tests.support.waiting import until

MADE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def answered_id(marqo: MarqoClient, method: str = "GET", path: str = "/", **options: Any) -> str:
    reply = httpx.request(method, marqo.url + path, **options)
    (name,) = reply.headers.get_list("x-request-id")
    return str(name)


@pytest.mark.parametrize("name", ["try-1", "Root=1-67891233-abcdef012345678912345678", "a/b.c_d:e+", "x" * 64])
def test_a_clients_id_comes_back(marqo: MarqoClient, name: str) -> None:
    assert answered_id(marqo, headers={"X-Request-ID": name}) == name


def test_every_request_has_an_id_of_its_own(marqo: MarqoClient) -> None:
    made = [answered_id(marqo) for _ in range(5)]
    assert len(set(made)) == 5
    assert all(map(MADE.fullmatch, made))


@pytest.mark.parametrize(
    "name", [b"", b"x" * 65, b"two words", b"a,b", b'"}', b"\xff\xfe", "größe".encode(), b"%s\x1b[1m"]
)
def test_what_could_break_a_log_line_is_replaced(marqo: MarqoClient, name: bytes) -> None:
    assert MADE.fullmatch(answered_id(marqo, headers=[(b"x-request-id", name)]))


def test_two_ids_are_none(marqo: MarqoClient) -> None:
    assert MADE.fullmatch(answered_id(marqo, headers=[("x-request-id", "one"), ("x-request-id", "two")]))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/vectorise", 405),
        ("GET", "/models?detailed=x", 422),
        ("POST", "/vectorise", 415),
        ("SHOUT", "/", 405),  # the last two are answered by HAProxy
        ("GET", "/" + "x" * 20_000, 431),
    ],
)
def test_errors_have_it(marqo: MarqoClient, method: str, path: str, status: int) -> None:
    reply = httpx.request(method, marqo.url + path, headers={"X-Request-ID": "err-1"})
    assert (reply.status_code, reply.headers.get_list("x-request-id")) == (status, ["err-1"])


def has_line(deployment: str, what: str, name: str) -> bool:
    """Whether such a line has this id."""
    return any(f" {name} " in line for line in lines(deployment, what))


def lines(deployment: str, what: str) -> list[str]:
    """Lines of the logs of a deployment's replicas that have `what` in them."""
    logs = {
        Path(file.path)
        for pid in replica_pids(deployment, "marqo")
        for file in psutil.Process(pid).open_files()
        if Path(file.path).name.startswith("replica_")
    }
    return [line for log in logs for line in log.read_text().splitlines() if what in line]


def test_lines_of_all_deployments_have_the_clients_id(marqo: MarqoClient) -> None:
    """The encoder loads a model for it, in a thread, and the preprocessor gives up a host that it names."""
    port = free_port()
    body = request([f"http://127.0.0.1:{port}/{i}.jpg" for i in range(40)], modality="image")
    config = {"modelName": "demo/ids", "modelProperties": demo_checkpoint() | {"mean": [0.41, 0.42, 0.43]}}
    body |= {"modelConfig": config, "preprocessingConfig": {"modality": "image"}, "returnIndividualError": True}
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "X-Request-ID": "all-1"}
    reply = marqo.post(msgpack.packb(body), headers)
    assert reply.status_code == 200, reply.content

    for deployment, what in (
        ("Ingress", "POST /vectorise 200"),
        ("Encoder", "loaded model"),
        ("Preprocessor", f"127.0.0.1:{port} is left alone"),
    ):
        until(partial(has_line, deployment, what, "all-1"))
