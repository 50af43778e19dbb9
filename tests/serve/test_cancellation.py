"""Work whose caller has gone, or whose time is up, costs no further download and no further forward pass."""

import contextlib
import http.client
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
import psutil
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from deployments.ray_internals import for_this_thread
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import Serve, replica_pids, sturdy_config
from tests.support.waiting import until

APP, TIMEOUT_APP = "cancelled", "timeout-6s"
AT_A_TIME = 4
CHUNK = 4
"""Items of one call, as `sturdy_config` has it."""
TIMEOUT_S = 6.0
HANG_UPS = 20
MANY = 64
"""Pictures of a request: 16 chunks, two of which are at the preprocessor at a time."""
QUIET_S = 20.0
"""Far less than a download may take."""
HEADERS = {"Content-Type": MSGPACK, "Accept": MSGPACK}


def application_config(name: str, **ingress: Any) -> dict[str, Any]:
    """One preprocessor that downloads four at a time and takes two chunks at a time: most work waits somewhere."""
    config = sturdy_config(name=name, replicas=1, **ingress)
    config["args"]["preprocessor"]["fetch"]["max_concurrency"] = AT_A_TIME
    config["deployments"][1]["max_ongoing_requests"] = 2
    return config


@pytest.fixture(scope="module")
def clients(serve_instance: Serve) -> Iterator[tuple[MarqoClient, MarqoClient]]:
    """An application with time, and one that gives requests up after six seconds."""
    configs = application_config(APP), application_config(TIMEOUT_APP, request_timeout_s=TIMEOUT_S)
    with_time, short_timeout = (MarqoClient(serve_instance.add(config)) for config in configs)
    both = with_time, short_timeout
    with ImageHost({"a.jpg": jpeg(photo(1, 300, 200))}) as host:
        for client in (*both, *both):
            client.embed([host.url("/ok/a.jpg")], "image")
    yield both
    serve_instance.remove(APP)
    serve_instance.remove(TIMEOUT_APP)


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"a.jpg": jpeg(photo(1, 300, 200))}) as host:
        yield host


def request(contents: list[str], modality: str = "image") -> dict[str, Any]:
    """Pictures have a minute: a download that ends before does so because it was cancelled. Any two chunks may make as
    many transfers as the preprocessor allows, whichever come first."""
    downloads = {"downloadTimeoutMs": 60_000, "downloadThreadCount": MANY} if modality == "image" else {}
    return {
        "modality": modality,
        "contents": contents,
        "modelConfig": {"modelName": "demo/clip"},
        "preprocessingConfig": {"modality": modality, **downloads},
        "returnIndividualError": True,
    }


def hang_up_after(client: MarqoClient, body: dict[str, Any], condition: Callable[[], bool]) -> None:
    """Sends a request, and closes the connection as soon as the condition holds."""
    address = urlsplit(client.url)
    with contextlib.closing(http.client.HTTPConnection(address.netloc)) as connection:
        connection.request("POST", address.path + "/vectorise", msgpack.packb(body), HEADERS)
        until(condition)


def is_busy(host: ImageHost) -> bool:
    return host.in_flight == AT_A_TIME


def hanging(host: ImageHost, count: int = MANY) -> list[str]:
    return [host.url(f"/hang?{i}") for i in range(count)]


def assert_quiet(client: MarqoClient, host: ImageHost) -> None:
    """Downloads end, and those that waited are never begun: the host sees only what is asked for from then on."""
    assert host.wait_for("in_flight", 0, QUIET_S)
    # A chunk may start downloads in the moment between another's cancellation and its own.
    client.embed([host.url("/ok/a.jpg")], "image")
    assert host.wait_for("in_flight", 0, QUIET_S)
    begun = len(host.requests)
    assert begun <= 3 * AT_A_TIME
    (vectors,) = client.results([host.url("/ok/a.jpg?again")], "image")
    assert np.isfinite(vectors[0][1]).all()
    assert [request.path for request in host.requests[begun:]] == ["/ok/a.jpg?again"]


def test_clients_that_hang_up_end_their_downloads(clients: tuple[MarqoClient, MarqoClient]) -> None:
    """Each of many: HAProxy missed one in five, until it was told not to splice requests."""
    client, _ = clients
    for _ in range(HANG_UPS):
        with ImageHost({}) as host:
            hang_up_after(client, request(hanging(host, 2 * AT_A_TIME)), partial(is_busy, host))
            assert host.wait_for("in_flight", 0, QUIET_S)


def test_a_request_whose_time_is_up_ends_its_downloads(
    clients: tuple[MarqoClient, MarqoClient], host: ImageHost
) -> None:
    """Most of its chunks do not get to the preprocessor by then: those that do afterwards begin nothing."""
    _, client = clients
    status, body = client.request(request(hanging(host)))
    assert status == 200
    assert all("the time of its request was over" in item["error_message"] for item in body["result"]), body
    assert_quiet(client, host)


def test_a_request_that_is_given_up_ends_its_downloads(
    clients: tuple[MarqoClient, MarqoClient], host: ImageHost
) -> None:
    """The preprocessor, which has begun some, stands still until the ingress waits no longer."""
    _, client = clients
    (pid,) = replica_pids("Preprocessor", TIMEOUT_APP)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(client.request, request(hanging(host)))
        until(partial(is_busy, host))
        os.kill(pid, signal.SIGSTOP)
        try:
            status, body = reply.result(60)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert status == 503
    assert f"not answered within {TIMEOUT_S:g} s" in body["detail"]
    assert_quiet(client, host)


def test_a_refused_request_ends_its_downloads(clients: tuple[MarqoClient, MarqoClient], host: ImageHost) -> None:
    """Without individual errors the first failure decides; the other chunks' work is for nothing then."""
    client, _ = clients
    # The first of each chunk fails: whichever chunk comes first takes all transfers.
    contents = hanging(host)
    contents[::CHUNK] = [host.url(f"/status/404?delay=0.5&{i}") for i in range(0, len(contents), CHUNK)]
    status, body = client.request(request(contents) | {"returnIndividualError": False})
    assert status == 400
    assert "returned 404" in body["detail"]
    assert any(request.path.startswith("/hang") for request in host.requests)
    assert_quiet(client, host)


def test_a_cancelled_handle_call_ends_its_downloads(clients: tuple[MarqoClient, MarqoClient], host: ImageHost) -> None:
    call = for_this_thread(serve.get_app_handle(APP)).vectorise.remote(request(hanging(host)))
    until(partial(is_busy, host))
    call.cancel()  # type: ignore[no-untyped-call]  # Ray's
    assert_quiet(clients[0], host)


def test_a_cancelled_handle_call_costs_no_forwards(marqo: MarqoClient, handle: DeploymentHandle[Any]) -> None:
    """The encoder's CPU time tells: all of the request, against the same request that is cancelled soon."""
    (pid,) = replica_pids("Encoder", "marqo")
    encoder = psutil.Process(pid)
    texts = [f"a text, number {i}, of some words that are not a search" for i in range(4096)]

    def spent() -> float:
        times = encoder.cpu_times()
        return times.user + times.system

    marqo.embed(texts[:256])
    before = spent()
    marqo.embed(texts)
    whole = spent() - before
    before = spent()
    call = handle.vectorise.remote(request(texts, "language"))
    until(lambda: spent() - before > 0.1 * whole)
    call.cancel()  # type: ignore[no-untyped-call]  # Ray's
    # The encoder takes it after what is left of the call, all of which has been queued by now.
    marqo.embed(["one more"])
    print(f"{whole:.2f} s for all, {spent() - before:.2f} s when it is cancelled")
    assert spent() - before < 0.5 * whole
