"""The running instance of Ray Serve, and the applications that tests deploy beside the main one."""

import os
from typing import Any

import psutil
import yaml

from benchmarks.lib.cluster import DEPLOYMENTS, Victims, wait_until
from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import ROOT
from demo.pictures import scenes
from operations.launch import deploy

GONE_S = 60.0
SCENES = scenes(24, 5)
MINE = {"model": "mine", "modelProperties": {"type": "random", "dimensions": 7}}


def demo_config() -> dict[str, Any]:
    """`config/demo.yaml`, small enough for several deployments on two cores: no autoscaling, tiny CPU shares."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    (application,) = config["applications"]
    for deployment in application["deployments"]:
        deployment.pop("autoscaling_config", None)
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    return config


class Serve:
    """The running instance. Applications are added to it and removed again; the main one stays."""

    def __init__(self, client: Any, config: dict[str, Any]) -> None:
        self._client = client
        self._config = config
        self._added: dict[str, dict[str, Any]] = {}
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"

    def add(self, config: dict[str, Any]) -> str:
        """Deploys an application, or a changed config of one that was added; the others keep running. Waits until it
        runs, and returns its URL."""
        before = self._added
        self._added = before | {config["name"]: config}
        try:
            self._deploy()
        except BaseException:
            self._added = before
            raise
        return f"{self.url}{config['route_prefix']}"

    def remove(self, name: str) -> None:
        """Deletes an application that was added, and waits until its processes have ended. The others keep running."""
        del self._added[name]
        self._deploy()
        self._wait_until_gone(name)

    def _deploy(self) -> None:
        applications = [*self._config["applications"], *self._added.values()]
        deploy(self._client, self._config | {"applications": applications})

    def _wait_until_gone(self, name: str) -> None:
        wait_until(lambda: not any(replica_pids(one, name) for one in DEPLOYMENTS), f"the end of {name}", GONE_S)


def sturdy_config(name: str, replicas: int = 2, **ingress: Any) -> dict[str, Any]:
    share = {"num_cpus": 0.1}
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "graph:build_app",
        "args": {
            "ingress": {"image_chunk": 4, **ingress},
            "preprocessor": {"fetch": {"allowed_networks": "127.0.0.0/8"}},
            "encoder": {"device": "cpu", "preload": ["demo/clip"]},
        },
        "deployments": [
            {"name": "Ingress", "ray_actor_options": share},
            {"name": "Preprocessor", "num_replicas": replicas, "ray_actor_options": share},
            {"name": "Encoder", "num_replicas": replicas, "ray_actor_options": share},
        ],
    }


def alive_nodes() -> set[str]:
    """Ids of the nodes that Ray does not take for dead."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]  # Ray's


def downloads_from(pid: int, host: ImageHost) -> bool:
    """Whether a process has a connection to the host."""
    connections = psutil.Process(pid).net_connections("tcp")
    return any(connection.raddr and connection.raddr.port == host.port for connection in connections)


def replica_pids(deployment: str, app: str) -> list[int]:
    """Processes of a deployment's replicas, of this session's Serve only."""
    return Victims(os.getpid(), "", app).replicas(deployment)
