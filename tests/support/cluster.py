"""A cluster of Ray on machines of its own, started as docs/quickstart.md says, behind operations/firewall/marqo.nft.

Its head runs no replicas, so that it may be lost.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.lib.cluster import wait_until
from benchmarks.lib.places import ROOT
from tests.support.commands import operators_environment
from tests.support.machines import Machine

BIN = Path(sys.executable).parent
APP = "marqo"
HEAD_PORT = 6379
DASHBOARD = "http://127.0.0.1:8265"
PORT = 8881
START_S = 120.0
STORE_BYTES = 100_000_000
MODEL_FILE = ROOT / "embedding" / "assets" / "demo-clip.safetensors"
"""Weights that requests may name by a URL, of the architecture with the name of the file."""
FIREWALL = (ROOT / "operations" / "firewall" / "marqo.nft").read_text()


def config_of_two(hosts: str) -> dict[str, Any]:
    """`config/cluster.yaml` for CPUs alone, with a replica of each deployment on each of two nodes.

    Args:
        hosts: network of the pictures and of models.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "cluster.yaml").read_text())
    (application,) = config["applications"]
    application["args"] = {
        "ingress": {"image_chunk": 4},
        "preprocessor": {"fetch": {"allowed_networks": hosts}},
        "encoder": {
            "device": "cpu",
            "preload": ["demo/clip"],
            "architectures": [str(MODEL_FILE.parent)],
            "models": {"model_sources": ["registry", "url"], "allowed_networks": hosts},
        },
    }
    for deployment in application["deployments"]:
        deployment.pop("autoscaling_config")
        deployment |= {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.1}}
    return config


def firewall(nodes: Sequence[Machine], clients: Sequence[Machine]) -> str:
    """The rules of operations/firewall for these addresses."""
    text = FIREWALL
    for name, group in {"nodes": nodes, "clients": clients}.items():
        addresses = ", ".join(machine.address for machine in group)
        text, count = re.subn(rf"^define {name} = .*$", f"define {name} = {{ {addresses} }}", text, flags=re.MULTILINE)
        assert count == 1
    return text


class Cluster:
    """A head, and nodes that join it.

    Args:
        head: its machine, which runs nothing else; nor do those of the other nodes.
        folder: for configs and what the nodes print.
    """

    def __init__(self, head: Machine, folder: Path) -> None:
        self.head = head
        self._folder = folder
        self._temporary: list[str] = []
        # Ray's token, which every node needs.
        self._variables = operators_environment() | {
            "MARQO_MODEL_CACHE_PATH": str(folder / "models"),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }

    def start(self, machine: Machine) -> None:
        """Starts a node, and waits until Ray counts it."""
        # Sockets have paths, of which the kernel takes 107 bytes; machines share the disk.
        self._temporary.append(tempfile.mkdtemp(prefix="mq", dir="/tmp"))
        where = (
            ["--head", f"--port={HEAD_PORT}", "--num-cpus=0", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
            if machine is self.head
            else [f"--address={self.head.address}:{HEAD_PORT}", "--num-cpus=4"]
        )
        command = [
            str(BIN / "ray"), "start", "--block", *where, f"--node-ip-address={machine.address}",
            "--node-manager-port=6380", "--object-manager-port=6381", "--disable-usage-stats",
            f"--object-store-memory={STORE_BYTES}", f"--temp-dir={self._temporary[-1]}",
        ]  # fmt: skip
        environment = f'eval "$({sys.executable} -m operations.launch --environment)"'
        log = self._folder / f"node-{len(self._temporary)}.log"
        with log.open("wb") as output:
            process = machine.popen(
                "sh", "-c", f'{environment}\nexec "$@"', "sh", *command,
                cwd=ROOT, env=self._variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

        def joined() -> bool:
            assert process.poll() is None, log.read_text()
            return machine.address in self.nodes()

        wait_until(joined, "a node to join", START_S)

    def nodes(self) -> list[str]:
        """Addresses of the nodes that Ray does not take for dead; none while the head says nothing."""
        view = self._ask("/nodes?view=summary")
        found = view.get("data", {}).get("summary", [])
        return [node["raylet"]["nodeManagerAddress"] for node in found if node["raylet"].get("state") == "ALIVE"]

    def deploy(self, config: Mapping[str, Any]) -> None:
        """`serve deploy` on the head."""
        path = self._folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        command = [str(BIN / "serve"), "deploy", str(path), "--address", DASHBOARD]
        self.head.run(*command, cwd=ROOT, env=self._variables)

    def application(self, name: str = APP) -> Mapping[str, Any]:
        """What Serve says of an application; empty while it says nothing."""
        found: Mapping[str, Any] = self._ask("/api/serve/applications/").get("applications", {}).get(name, {})
        return found

    def replicas(self) -> dict[str, dict[str, str]]:
        """For each deployment the running replicas, and on which node (its address) each is."""
        return {
            name: {
                replica["replica_id"]: replica["node_ip"]
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING"
            }
            for name, deployment in self.application().get("deployments", {}).items()
        }

    def wait_for_replicas(self, nodes: Sequence[Machine]) -> None:
        """Waits until each of these nodes has a replica of each deployment, and no other node has one."""
        wanted = sorted(node.address for node in nodes)

        def complete() -> bool:
            found = self.replicas()
            return len(found) == 3 and all(sorted(each.values()) == wanted for each in found.values())

        wait_until(complete, f"replicas on {wanted}", START_S)

    def misses(self, node: Machine) -> bool:
        """Whether Serve counts replicas, and none on this node."""
        found = self.replicas().values()
        return any(found) and not any(node.address in each.values() for each in found)

    def node_ids(self) -> dict[str, str]:
        """Ray's ids of the nodes with replicas, by address."""
        deployments = self.application().get("deployments", {}).values()
        return {each["node_ip"]: each["node_id"] for one in deployments for each in one["replicas"]}

    def remove_files(self) -> None:
        """Deletes what the nodes have left on the disk, when they have ended."""
        for folder in self._temporary:
            shutil.rmtree(folder, ignore_errors=True)

    def _ask(self, path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._variables['RAY_AUTH_TOKEN']}"}
        try:
            with self.head.entered(), httpx.Client(headers=headers, timeout=10, trust_env=False) as client:
                reply = client.get(f"{DASHBOARD}{path}")
        except httpx.TransportError:
            return {}
        found: dict[str, Any] = reply.json() if reply.is_success else {}
        return found


@contextlib.contextmanager
def cluster_on(head: Machine, nodes: Sequence[Machine], clients: Sequence[Machine], folder: Path) -> Iterator[Cluster]:
    """Such a cluster, behind its firewall; all of its processes end with the context."""
    cluster = Cluster(head, folder)
    machines = [head, *nodes]
    try:
        for machine in machines:
            machine.filter(firewall(machines, clients))
            cluster.start(machine)
        yield cluster
    finally:
        for machine in machines:
            machine.power_off()
        cluster.remove_files()
