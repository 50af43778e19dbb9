"""The running instance of Ray Serve, and the applications that tests deploy beside the main one."""

from typing import Any

import psutil
import yaml

from benchmarks.lib.places import ROOT
from demo.pictures import scenes
from operations.launch import deploy

APP = "sturdy"
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
    """The running instance. Applications are added to it and taken away again; the main one stays."""

    def __init__(self, client: Any, config: dict[str, Any]) -> None:
        self._client = client
        self._config = config
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"

    def deploy(self, *extra: dict[str, Any]) -> None:
        """Deploys the main application and the extra ones, and waits until they run."""
        deploy(self._client, self._config | {"applications": [*self._config["applications"], *extra]})


def sturdy_config(name: str = APP, replicas: int = 2, **ingress: Any) -> dict[str, Any]:
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


def replica_pids(deployment: str, app: str = APP) -> list[int]:
    mark = f"ServeReplica:{app}:{deployment}"
    return [p.pid for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]


def preloading_config(replicas: int, **encoder: Any) -> dict[str, Any]:
    share = {"num_cpus": 0.1}
    return {
        "name": "preloaded",
        "route_prefix": "/preloaded",
        "import_path": "graph:build_app",
        "args": {"encoder": {"device": "cpu", "preload": ["random/small", MINE, "no_model"]}},
        "deployments": [
            {"name": "Ingress", "ray_actor_options": share},
            {"name": "Preprocessor", "ray_actor_options": share},
            {"name": "Encoder", "num_replicas": replicas, "ray_actor_options": share, **encoder},
        ],
    }
