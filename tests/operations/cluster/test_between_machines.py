"""Who reaches what on a cluster of several machines, each behind operations/firewall/marqo.nft."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from benchmarks.lib.cluster import wait_until
from benchmarks.lib.image_host import ImageHost
from tests.support.cluster import PORT, Cluster, config_of_two, firewall
from tests.support.ingress import assert_right
from tests.support.machines import Machine
from tests.support.marqo_client import MarqoClient
from tests.support.waiting import until

LIMIT_S = 60.0
LONG_TIMEOUT = {"downloadTimeoutMs": 60_000}
MOST = 64
"""Models, or pictures, that are asked for until both nodes have some."""
CONNECT_S = 2.0
"""A packet filter does not answer."""


def front_doors(nodes: Sequence[Machine]) -> list[MarqoClient]:
    return [MarqoClient(f"http://{node.address}:{PORT}") for node in nodes]


def test_a_client_gets_vectors_from_either_node_at_either_front_door(
    cluster: Cluster, nodes: Sequence[Machine]
) -> None:
    """Models are asked for, each of which one encoder loads, until either node has one that the other lacks."""
    doors = front_doors(nodes)
    ids = cluster.node_ids()
    wanted = {ids[node.address] for node in nodes}
    models: list[str] = []
    while wanted - alone(doors[0], models):
        assert len(models) < MOST
        models.append(f"model-{len(models)}")
        doors[0].embed(["hi"], model=models[-1], properties=properties(models[-1]))
    for model in models:
        one, other = (door.embed(["a red circle"], model=model, properties=properties(model)) for door in doors)
        assert np.array_equal(one, other)
    assert wanted == alone(doors[1], models)


def properties(model: str) -> dict[str, Any]:
    return {"name": model, "type": "random", "dimensions": 7}


def alone(door: MarqoClient, models: Sequence[str]) -> set[str]:
    """Ids of the nodes that hold one of these models alone."""
    listed = door.get("/models?replicas=true").json()["models"]
    held = [{each["node"] for each in model["replicas"]} for model in listed if model["model_name"] in models]
    return {node for found in held if len(found) == 1 for node in found}


def test_pictures_of_a_host_of_the_clients_network_are_prepared_on_both_nodes(
    cluster: Cluster, nodes: Sequence[Machine], image_host: ImageHost, pictures: list[str]
) -> None:
    """Both are seen to download while the host holds its answers back, at either front door."""
    doors = front_doors(nodes)
    right = doors[0].embed(pictures[:1], "image")
    for number, door in enumerate(doors):
        with ImageHost(image_host.files, address=image_host.address) as host, ThreadPoolExecutor(MOST) as pool:
            held = ask_until_all_download(door, host, pool, nodes)
            host.release()
            assert_right([request.result() for request in held], right)
            assert len(host.requests) == len(held), number


def ask_until_all_download(
    door: MarqoClient, host: ImageHost, pool: Executor, nodes: Sequence[Machine]
) -> list[Future[np.ndarray]]:
    """Asks for one more picture at a time, which the host holds back, until each of the nodes downloads one."""
    asked: list[Future[np.ndarray]] = []
    while not all(node.connections_to(host.port) for node in nodes):
        assert len(asked) < MOST
        url = host.url(f"/held/0.jpg?{len(asked)}")
        asked.append(pool.submit(door.embed, [url], "image", preprocessing=LONG_TIMEOUT))
        wait_until(lambda: host.in_flight == len(asked), "a download", LIMIT_S)
    return asked


def test_a_stranger_reaches_the_front_door_and_nothing_else(
    cluster: Cluster, network: Sequence[Machine], nodes: Sequence[Machine], client: Machine
) -> None:
    """Every port at which something listens is tried. Without the filter, ports of Ray itself are open."""
    head, node = network[0], nodes[0]
    assert {6379, 6380, 6381} <= {port for _, port in head.listening()}
    assert reached(head) <= {PORT}  # where Serve starts a HAProxy too
    for each in nodes:
        assert reached(each) == {PORT}
    node.run("nft", "delete", "table", "inet", "marqo")
    try:
        assert {PORT, 6380, 6381} < reached(node)
    finally:
        node.filter(firewall([head, *nodes], [client]))


def reached(machine: Machine) -> set[int]:
    """The ports of a machine, among those at which it listens, to which this thread's machine can connect."""
    ports = sorted({port for _, port in machine.listening()})

    async def connects(port: int) -> bool:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(machine.address, port)
            writer.close()
            return True
        return False

    async def connect() -> list[bool]:
        return await asyncio.gather(*map(connects, ports))

    return {port for port, open_ in zip(ports, asyncio.run(connect()), strict=True) if open_}


def test_the_nodes_need_the_ports_of_the_firewall_and_no_others(
    cluster: Cluster, network: Sequence[Machine], nodes: Sequence[Machine], pictures: list[str]
) -> None:
    """By its counters: each rule has let something in, and no packet of a node was refused."""
    for door in front_doors(nodes):
        for _ in range(4):
            door.embed(pictures, "image")
            door.embed(["hi"])
    counted = [machine.refused_and_accepted() for machine in network[:3]]
    assert [refused for refused, _ in counted] == [0, 0, 0], counted
    used = {ports for _, accepted in counted for ports, packets in accepted.items() if packets}
    assert used == {"6379", "6380-6381", "8500", "10002-19999", "30000-31000", "32768-60999", str(PORT)}


def test_auto_is_no_device_of_a_cluster_that_has_no_gpu(
    cluster: Cluster, nodes: Sequence[Machine], client: Machine
) -> None:
    """The application says what to write, and the one beside it goes on."""
    good = config_of_two(f"{client.address}/32")
    (application,) = good["applications"]
    auto = application | {"name": "auto", "route_prefix": "/auto", "args": {"encoder": {"device": "auto"}}}
    cluster.deploy(good | {"applications": [application, auto]})
    try:
        until(lambda: cluster.application("auto").get("status") == "DEPLOY_FAILED", LIMIT_S)
        message = cluster.application("auto")["message"]
        assert "say `device: cuda` (encoders wait for nodes with GPUs) or `device: cpu`" in message
        assert front_doors(nodes)[0].embed(["hi"]).shape == (1, 128)
    finally:
        cluster.deploy(good)
