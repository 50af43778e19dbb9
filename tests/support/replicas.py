"""The application with several replicas of each kind, and what the replicas of any application hold."""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.hub_host import HubHost
from tests.support.ingress import demo_checkpoint
from tests.support.marqo_client import MarqoClient
from tests.support.serve import MINE

APP = "replicated"
WEIGHTS = "demo-clip.safetensors"
PRELOADED = ("downloaded", "mine", "random/small")


@dataclass(frozen=True)
class Replicated:
    """The application with two preprocessors and three encoders, and what was seen before its first request.

    Args:
        client: of the application.
        hub: from which `downloaded` is downloaded.
        may_download: hub's files are sent only while it is set.
        cache: folder of the downloads.
        first_calls: calls of each deployment, as Serve counts them.
        first_models: sorted names of the models of each encoder.
    """

    client: MarqoClient
    hub: HubHost
    may_download: threading.Event
    cache: Path
    first_calls: Mapping[str, float]
    first_models: Sequence[Sequence[str]]


def replicated_config(hub: HubHost, cache: Path) -> dict[str, Any]:
    """Chunks and batches of odd sizes; preloaded models, and one that has nothing to load."""
    share = {"num_cpus": 0.1}
    checkpoint = {name: value for name, value in demo_checkpoint().items() if name != "localpath"}
    properties = checkpoint | {"url": f"{hub.url}/owner/name/resolve/main/{WEIGHTS}"}
    return {
        "name": APP,
        "route_prefix": f"/{APP}",
        "import_path": "graph:build_app",
        "args": {
            "ingress": {"image_chunk": 3, "text_chunk": 5},
            "preprocessor": {"fetch": {"allowed_networks": "127.0.0.0/8"}},
            "encoder": {
                "device": "cpu",
                "preload": ["random/small", MINE, "no_model", {"model": "downloaded", "modelProperties": properties}],
                "models": {
                    "model_sources": ["registry", "url"],
                    "allowed_networks": "127.0.0.0/8",
                    "cache_dir": str(cache),
                },
            },
        },
        "deployments": [
            {"name": "Ingress", "ray_actor_options": share},
            {"name": "Preprocessor", "num_replicas": 2, "ray_actor_options": share},
            {
                "name": "Encoder",
                "num_replicas": 3,
                "ray_actor_options": share,
                "user_config": {"max_image_batch": 5, "max_text_batch": 9},
            },
        ],
    }


def models_by_replica(client: MarqoClient) -> Mapping[str, Sequence[str]]:
    """Sorted names of the models that each encoder has loaded. One that has loaded none is left out."""
    found = defaultdict(list)
    for model in client.get("/models?replicas=true").json()["models"]:
        for holder in model["replicas"]:
            found[holder["replica"]].append(model["model_name"])
    return {replica: sorted(names) for replica, names in found.items()}


def holders(client: MarqoClient, name: str) -> int:
    """How many replicas hold a model."""
    return sum(name in names for names in models_by_replica(client).values())
