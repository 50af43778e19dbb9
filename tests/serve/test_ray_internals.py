"""Each function of deployments/ray_internals.py against the running Ray Serve: Ray's private names mean what they did.

No `from __future__ import annotations`: Serve reads the annotation of a builder's argument at run time.
"""

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import numpy as np
import psutil
import pytest
import ray
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest

import graph
from benchmarks.lib.cluster import Node, wait_until
from benchmarks.lib.image_host import ImageHost
from deployments.encoder import deployment
from deployments.encoder.loaded import Loaded
from deployments.ray_internals import (
    PowerOfTwoChoicesRequestRouter,
    RequestMetadata,
    ask_replica,
    build_application,
    by_reference,
    close_handles,
    dead_processes,
    deployment_config,
    disconnect_serve,
    for_this_thread,
    goes_by_reference,
    grpc_channel,
    haproxy_socket,
    known_replicas,
    pending_requests,
    request_id,
    request_router,
    serve_client,
    serve_controller,
    start_serve,
    store_stats,
)
from deployments.replica import Settings
from deployments.routing import ModelAffinityRouter
from embedding.errors import RequestError
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from operations.haproxy.drain import in_flight
from tests.support.ingress import is_error
from tests.support.marqo_client import MarqoClient
from tests.support.serve import Serve, alive_nodes
from tests.support.waiting import until_async

T = TypeVar("T")
APP = "marqo"
MEBIBYTE = 2**20
LIMIT_S = 60.0


class Loop:
    """An event loop in a thread of its own. It runs on after the tests, since Serve's handles get updates in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)


@pytest.fixture(scope="module")
def loop() -> Loop:
    return Loop()


@pytest.fixture(scope="module")
def encoder(serve_instance: Serve, loop: Loop) -> DeploymentHandle[Any]:
    """A handle as a replica has it: it runs in an event loop, has been used, and knows its replicas."""

    async def used() -> DeploymentHandle[Any]:
        handle: DeploymentHandle[Any] = DeploymentHandle("Encoder", APP)
        await handle.options(method_name="loaded").remote()
        return handle

    return loop.run(used())


async def answer(handle: DeploymentHandle[Any], *args: Any) -> Any:
    return await handle.remote(*args)


def replicas_of_serve(deployment: str) -> set[str]:
    """Ids of the replicas, as Serve's controller has them."""
    details = serve_client().get_serve_details()["applications"][APP]["deployments"][deployment]
    return {replica["replica_id"] for replica in details["replicas"] if replica["state"] == "RUNNING"}


def test_ray_runs_without_idle_processes(serve_instance: Serve) -> None:
    """The log monitor is started by the same class of Ray, and runs."""
    words = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    names = ("log_monitor.py", "/monitor.py", "/dashboard.py")
    assert [name for name in names if any(name in line for line in words)] == ["log_monitor.py"]


def test_only_replicas_import_a_deployment_that_is_named_by_its_path(serve_instance: Serve) -> None:
    """With the options that it has where it is written."""
    assert isinstance(deployment.Encoder.func_or_class, str)
    written = importlib.import_module("deployments.encoder.encoder").Encoder
    assert replicas_of_serve("Encoder")
    assert (deployment.Encoder.name, deployment.Encoder.user_config) == (written.name, written.user_config)
    assert deployment.Encoder.max_ongoing_requests == written.max_ongoing_requests


def test_a_plain_handle_goes_by_value_and_by_reference_makes_one_that_does_not(encoder: DeploymentHandle[Any]) -> None:
    """In the mode for throughput, in which the project runs Serve."""
    assert not goes_by_reference(encoder)
    assert not goes_by_reference(encoder.options(method_name="touch"))
    other = by_reference(encoder, method_name="touch", stream=True)
    assert goes_by_reference(other)
    assert (other.handle_options.method_name, other.handle_options.stream) == ("touch", True)
    assert not goes_by_reference(encoder)


def test_a_call_by_reference_resolves_references_and_takes_large_arguments(
    loop: Loop, encoder: DeploymentHandle[Any]
) -> None:
    touch = by_reference(encoder, method_name="touch")
    pixels = np.zeros(8 * MEBIBYTE, np.uint8)
    assert loop.run(answer(touch, pixels)) is None
    assert loop.run(answer(touch, ray.put(pixels))) is None


def test_a_handle_for_this_thread_needs_no_event_loop(serve_instance: Serve) -> None:
    handle: DeploymentHandle[Any] = for_this_thread(DeploymentHandle("Encoder", APP))
    loaded = handle.options(method_name="loaded").remote().result(timeout_s=LIMIT_S)
    assert isinstance(loaded, Loaded)
    assert {replica.replica_id.unique_id for replica in known_replicas(handle)} == replicas_of_serve("Encoder")


def test_a_plain_handle_needs_one(serve_instance: Serve) -> None:
    """Otherwise `for_this_thread` could go away."""
    handle: DeploymentHandle[Any] = DeploymentHandle("Encoder", APP)
    with pytest.raises(RuntimeError, match="event loop"):
        handle.options(method_name="loaded")


def test_the_known_replicas_are_those_of_serve(loop: Loop, encoder: DeploymentHandle[Any]) -> None:
    known = {replica.replica_id.unique_id for replica in known_replicas(encoder)}
    assert known
    assert known == replicas_of_serve("Encoder")
    loaded = loop.run(answer(encoder.options(method_name="loaded")))
    assert loaded.replica in known


def test_a_single_replica_is_asked(loop: Loop, encoder: DeploymentHandle[Any]) -> None:
    async def asked() -> tuple[str, Any]:
        (replica,) = known_replicas(encoder)
        return replica.replica_id.unique_id, await ask_replica(replica, "loaded")

    replica, loaded = loop.run(asked())
    assert isinstance(loaded, Loaded)
    assert loaded.replica == replica


def test_what_a_single_replica_raises_is_raised(loop: Loop, encoder: DeploymentHandle[Any]) -> None:
    async def asked() -> Any:
        return await ask_replica(known_replicas(encoder)[0], "no_such_method")

    with pytest.raises(Exception, match="no_such_method"):
        loop.run(asked())


def test_a_handle_knows_the_options_of_its_deployment(encoder: DeploymentHandle[Any]) -> None:
    config = deployment_config(encoder)
    assert (config.num_replicas, config.autoscaling_config) == (1, None)
    assert config.user_config == {"max_image_batch": 32, "max_text_batch": 128}


@asynccontextmanager
async def call_in_flight(encoder: DeploymentHandle[Any]) -> AsyncIterator[None]:
    """A call that the replica works on until the context ends: it downloads a model, and is refused then."""
    with ImageHost() as host:
        properties = {"name": "ViT-B-32", "type": "open_clip", "dimensions": 512, "url": host.url("/held/missing.pt")}
        spec = ModelSpec.from_config(ModelConfig(model_name="held", model_properties=properties))
        call = encoder.options(method_name="describe").remote(spec)
        await until_async(lambda: host.in_flight == 1)
        yield
        host.release()
        assert isinstance(await call, RequestError)


def test_a_replica_and_its_router_tell_the_length_of_its_queue(loop: Loop, encoder: DeploymentHandle[Any]) -> None:
    """`get_queue_len` is a public method of what `known_replicas` gives, which is nowhere documented."""
    router = request_router(encoder)
    assert router is not None

    async def lengths() -> tuple[int, int | None]:
        (replica,) = known_replicas(encoder)
        async with call_in_flight(encoder):
            asked = await replica.get_queue_len(deadline_s=LIMIT_S)
            return asked, router.replica_queue_len_cache.get(replica.replica_id)

    assert loop.run(lengths()) == (1, 1)


def test_the_channel_reaches_the_replica_which_does_not_know_the_method(
    loop: Loop, encoder: DeploymentHandle[Any]
) -> None:
    async def code() -> Any:
        call = grpc_channel(known_replicas(encoder)[0]).unary_unary("/ray.serve.ASGIService/Answer")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"", timeout=LIMIT_S)
        return refused.value.code()

    assert loop.run(code()) is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_is_pending_until_it_has_a_replica(loop: Loop, encoder: DeploymentHandle[Any]) -> None:
    router = request_router(encoder)
    assert router is not None

    async def seen() -> list[PendingRequest]:
        assert not [pending for pending in pending_requests(router) if not pending.future.done()]
        call = encoder.options(method_name="loaded", session_id="a model").remote()
        found: list[PendingRequest] = []
        for _ in range(1000):
            found = [pending for pending in pending_requests(router) if not pending.future.done()]
            if found:
                break
            await asyncio.sleep(0)
        await call
        assert not [pending for pending in pending_requests(router) if not pending.future.done()]
        return found

    (pending,) = loop.run(seen())
    assert isinstance(pending.metadata, RequestMetadata)
    assert (pending.metadata.call_method, pending.metadata.session_id) == ("loaded", "a model")
    assert pending.metadata.internal_request_id


def test_encoders_are_chosen_by_the_project_s_router(encoder: DeploymentHandle[Any]) -> None:
    """By name: Serve sends the class by value, so it is not the same object here."""
    router = request_router(encoder)
    assert isinstance(router, PowerOfTwoChoicesRequestRouter)
    assert type(router).__name__ == ModelAffinityRouter.__name__


@pytest.mark.parametrize(
    "name",
    ["initialize_state", "choose_replicas", "on_request_completed", "_get_pending_request_matching_metadata"],
)
def test_what_the_project_s_router_overrides_is_there(name: str) -> None:
    """An override of what Serve no longer calls would never run."""
    assert callable(getattr(PowerOfTwoChoicesRequestRouter, name))
    assert name in vars(ModelAffinityRouter)


def test_outside_of_a_request_there_is_no_id(serve_instance: Serve) -> None:
    """Within one it is that of the HTTP request, in all deployments: see test_request_ids.py."""
    assert request_id() == ""


def test_starting_serve_again_gives_the_client_of_the_one_that_runs(serve_instance: Serve) -> None:
    client = start_serve({}, "EveryNode")
    assert APP in client.get_serve_details()["applications"]
    assert callable(client.deploy_apps)


def test_no_process_of_a_running_ray_is_dead(serve_instance: Serve) -> None:
    assert dead_processes() == []


def test_the_controller_is_found_and_can_be_asked_to_stop(serve_instance: Serve) -> None:
    controller = serve_controller()
    assert APP in ray.get(controller.get_serve_instance_details.remote(), timeout=LIMIT_S)["applications"]
    assert callable(controller.graceful_shutdown.remote)


@pytest.fixture
def new_client(serve_instance: Serve) -> Iterator[Any]:
    """Another client, without the handles that other tests have made: those stay open, whichever tests ran before.
    Tests that come later connect anew."""
    disconnect_serve()
    yield serve_client()
    disconnect_serve()


def test_a_process_that_has_disconnected_connects_again(new_client: Any) -> None:
    assert serve_client() is new_client
    disconnect_serve()
    other = serve_client()
    assert other is not new_client
    assert APP in other.get_serve_details()["applications"]


def test_closing_handles_forgets_them(new_client: Any) -> None:
    first = for_this_thread(serve.get_deployment_handle("Encoder", APP))
    assert isinstance(first.options(method_name="loaded").remote().result(timeout_s=LIMIT_S), Loaded)
    assert serve.get_deployment_handle("Encoder", APP) is first
    close_handles()
    assert serve.get_deployment_handle("Encoder", APP) is not first


def test_the_haproxy_of_a_node_counts_its_requests(serve_instance: Serve, image_host: ImageHost) -> None:
    commands = haproxy_socket(ray.get_runtime_context().get_node_id())
    urls = [image_host.url("/hang?counted")]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(MarqoClient(serve_instance.url).results, urls, "image")
        wait_until(lambda: in_flight(commands) == 1, "a request in flight", LIMIT_S)
        assert is_error(asking.result()[0])
    wait_until(lambda: in_flight(commands) == 0, "the end of the request", LIMIT_S)


def test_the_store_counts_what_it_holds(serve_instance: Serve) -> None:
    (node,) = [node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id()]  # type: ignore[no-untyped-call]
    reference = ray.put(np.zeros(8 * MEBIBYTE, np.uint8))
    stats = store_stats(node["NodeManagerAddress"], node["NodeManagerPort"])
    assert stats.num_local_objects >= 1
    assert stats.object_store_bytes_used >= 8 * MEBIBYTE
    del reference


def test_a_worker_node_joins_with_the_token_of_the_machine_and_ends_with_its_process(serve_instance: Serve) -> None:
    """`use_token_auth` and `start_worker_node`, which `Node` calls in a process of its own."""

    before = alive_nodes()
    node = Node(ray.get_runtime_context().gcs_address, cpus=0)
    try:
        (joined,) = alive_nodes() - before
    finally:
        node.kill()
    wait_until(lambda: joined not in alive_nodes(), "the node to be missed", LIMIT_S)


def test_a_builder_gets_arguments_of_its_annotation_s_type() -> None:
    class Arguments(Settings):
        number: int

    given: list[Arguments] = []

    def build(args: Arguments) -> Application:
        given.append(args)
        return graph.app

    assert build_application(build, {"number": "5"}) is graph.app
    assert given == [Arguments(number=5)]
