"""Pods of operations/kubernetes, from the image, started as KubeRay starts them: each on a machine of its own, with the
command that KubeRay makes of the manifest. Each group has one pod, and each deployment one replica.
"""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import jpeg, photo
from tests.image.build import Image
from tests.image.container import Container, running
from tests.support import machines
from tests.support.machines import Machine
from tests.support.manifests import RayPod, one, pods, ray_service, rendered
from tests.support.marqo_client import MarqoClient
from tests.support.waiting import until

OVERLAY = "cpu"
GROUPS = ("head", "preprocessing", "encoding")
STORE = {"object-store-memory": str(200 * 2**20)}
"""In place of the manifest's, for which a pod has more shared memory than a container of these tests."""
TOKEN = secrets.token_hex(32)
START_S = 240.0
PORT = 8881
LONG_TIMEOUT = {"downloadTimeoutMs": 60_000}


def start_command(pod: RayPod, head: str) -> str:
    """KubeRay's, version 1.7: the parameters of the manifest, and what it knows of the pod's limits."""
    place = {"head": "", "dashboard-host": "0.0.0.0"} if pod.group == "head" else {"address": f"{head}:6379"}
    cores: str = pod.container["resources"]["limits"]["cpu"]
    known = {"num-cpus": cores, "metrics-export-port": "8080", "block": ""}
    options = {**place, **known, **pod.start, **STORE}
    words = [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]
    return f"ulimit -n 65536; ray start {' '.join([*words, *resources(pod.group)])}"


def resources(group: str) -> list[str]:
    """Ray's own resources of a group of workers."""
    groups = ray_service(OVERLAY)["rayClusterConfig"]["workerGroupSpecs"]
    named = [each["resources"] for each in groups if each["groupName"] == group and "resources" in each]
    return [f"--resources='{json.dumps({name: float(value) for name, value in each.items()})}'" for each in named]


def environment() -> dict[str, str]:
    """That of the ConfigMap, and Ray's token as KubeRay hands it over."""
    found: dict[str, str] = one(rendered(OVERLAY), "ConfigMap")["data"]
    return found | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def config(image_hosts: str) -> dict[str, Any]:
    """The manifest's `serveConfigV2`, with one replica of each deployment and the demo model."""
    found: dict[str, Any] = yaml.safe_load(ray_service(OVERLAY)["serveConfigV2"])
    (application,) = found["applications"]
    application["args"]["encoder"] |= {"threads": 1, "preload": ["demo/clip"]}
    application["args"]["preprocessor"] = {"fetch": {"allowed_networks": image_hosts}}
    for deployment in application["deployments"]:
        deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    return found


@pytest.fixture(scope="module")
def network() -> Iterator[Sequence[Machine]]:
    """A machine for each pod, and one for a client."""
    if reason := machines.why_not():
        pytest.skip(reason)
    with machines.machines(*GROUPS, "client") as found:
        for machine in found:
            # By it Ray finds out which of its addresses others reach. Nothing answers there.
            machine.run("ip", "route", "add", "default", "dev", "eth0")
        yield found


@pytest.fixture(scope="module")
def cluster(
    image: Image, network: Sequence[Machine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Container]]:
    """The pods by their groups, with the application running."""
    by_group = {pod.group: pod for pod in pods(OVERLAY)}
    *places, client = network
    head = places[0]
    found: dict[str, Container] = {}
    with ExitStack() as stack:
        for group, machine in zip(GROUPS, places, strict=True):
            started = running(
                image,
                tmp_path_factory.mktemp(group),
                [start_command(by_group[group], head.address)],
                entrypoint=["/bin/bash", "-c", "--"],
                environment=environment(),
                network=machine.network,
            )
            found[group] = stack.enter_context(started)
            found[group].wait_for(partial(has_joined, found["head"], len(found)), f"the pod {group}", START_S)
        deploy(head, config(f"{client.address}/32"))
        yield found


def has_joined(head: Container, count: int) -> bool:
    status = head.run("bash", "-c", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={TOKEN} ray status").stdout
    return status.partition("Pending:")[0].count("node_") == count


def deploy(head: Machine, wanted: Mapping[str, Any]) -> None:
    """As the operator does it, by the head's dashboard; waits until the application runs."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = "http://127.0.0.1:8265/api/serve/applications/"
    with head.entered(), httpx.Client(headers=headers, timeout=60, trust_env=False) as dashboard:
        until(lambda: dashboard.get(url).is_success, START_S)
        dashboard.put(url, json=wanted).raise_for_status()

        def is_running() -> bool:
            application = dashboard.get(url).json()["applications"]["marqo"]
            assert application["status"] != "DEPLOY_FAILED", application["message"]
            return bool(application["status"] == "RUNNING")

        until(is_running, START_S)


def front_door(machine: Machine) -> MarqoClient:
    return MarqoClient(f"http://{machine.address}:{PORT}")


def is_ready(machine: Machine, path: str) -> bool:
    return takes_connections(machine) and front_door(machine).get(path).status_code == 200


def test_the_workers_are_ready_and_give_vectors(cluster: Mapping[str, Container], network: Sequence[Machine]) -> None:
    """Of a client on another machine, at the front door of either worker; readiness is what the manifest asks for."""
    _, *workers, client = network
    ready = {
        pod.group: pod.container["readinessProbe"]["httpGet"]["path"] for pod in pods(OVERLAY) if pod.group != "head"
    }
    with client.entered(), ImageHost({"a.jpg": jpeg(photo(1, 200, 150))}, address=client.address) as host:
        for group, machine in zip(GROUPS[1:], workers, strict=True):
            until(partial(is_ready, machine, ready[group]), START_S)
        texts = [front_door(machine).embed(["a red circle"]) for machine in workers]
        pictures = [front_door(machine).embed([host.url("/ok/a.jpg")], "image") for machine in workers]
    for one_way, other_way in (texts, pictures):
        assert one_way.shape == (1, 128)
        assert np.array_equal(one_way, other_way)


def test_a_pod_that_is_stopped_answers_what_it_has(
    cluster: Mapping[str, Container], network: Sequence[Machine]
) -> None:
    """The hook of the manifest, which Kubernetes runs before it stops a pod, waits for a request that is held."""
    _, preprocessing, _, client = network
    (pod,) = (pod for pod in pods(OVERLAY) if pod.group == "preprocessing")
    hook = pod.container["lifecycle"]["preStop"]["exec"]["command"]
    with client.entered(), ImageHost({"a.jpg": jpeg(photo(1, 200, 150))}, address=client.address) as host:
        door = front_door(preprocessing)
        with ThreadPoolExecutor(2) as pool:
            asked = pool.submit(door.embed, [host.url("/held/a.jpg")], "image", preprocessing=LONG_TIMEOUT)
            assert host.wait_for("in_flight", 1)
            stopping = pool.submit(cluster["preprocessing"].run, *hook)
            until(lambda: not takes_connections(preprocessing), START_S)
            assert not stopping.done()
            assert not asked.done()
            host.release()
            assert asked.result().shape == (1, 128)
            done = stopping.result()
    assert done.returncode == 0, done.stderr


def takes_connections(machine: Machine) -> bool:
    try:
        httpx.get(f"http://{machine.address}:{PORT}/-/healthz", timeout=10, trust_env=False)
    except httpx.ConnectError:
        return False
    return True
