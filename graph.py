"""The deployment graph, built from typed arguments with a closed set of keys.

    serve run graph:app                     # one replica of each deployment, defaults
    serve run config/serve.yaml             # production on one machine: sizes, autoscaling, batching
    serve deploy config/cluster.yaml        # on several machines

No `from __future__ import annotations` here: Serve reads the annotation of the builder's argument at run time.
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.serve import Application, Deployment

from deployments.encoder.deployment import Encoder
from deployments.encoder.settings import BatchSettings, EncoderSettings
from deployments.ingress.ingress import Ingress
from deployments.ingress.settings import IngressSettings
from deployments.preprocessor.preprocessor import Preprocessor, PreprocessorSettings
from deployments.replica import Settings


class GraphArgs(Settings):
    """The `args` of the application. Replicas, autoscaling and batch maxima are Serve's options, under `deployments`.

    Args:
        ingress: chunk sizes, limits and timeouts.
        preprocessor: downloads and decoding.
        encoder: device and models.
    """

    ingress: IngressSettings = IngressSettings()
    preprocessor: PreprocessorSettings = PreprocessorSettings()
    encoder: EncoderSettings = EncoderSettings()


USER_CONFIGS: dict[str, type[Settings] | None] = {"Ingress": None, "Preprocessor": None, "Encoder": BatchSettings}
"""The deployments of the graph, with the schema of their `user_config`; None if they take none."""


NODE_GROUP = "ray.io/node-group"
"""Ray's label of nodes that are started on demand: the group to which a node belongs."""


def build_app(args: GraphArgs) -> Application:
    """The graph: an ingress that calls preprocessors and encoders.

    Args:
        args: an unknown key anywhere is an error.

    Raises:
        ValueError: the device is "auto", and cannot be chosen for a cluster whose GPUs may start later.
    """
    # Ray annotates its decorator as if it returned the class.
    ingress, preprocessor, encoder = (cast(Deployment, each) for each in (Ingress, Preprocessor, Encoder))
    device = _device(args.encoder.device)
    encoder = encoder.options(ray_actor_options={"num_cpus": 1, "num_gpus": int(device == "cuda")})
    return ingress.bind(
        preprocessor.bind(args.preprocessor),
        # Encoders prepare no pictures, but how they were prepared shows in the fingerprints of their models.
        encoder.bind(args.encoder.model_copy(update={"device": device}), args.preprocessor.jpeg_scaling),
        args.ingress,
    )


def _device(wanted: str) -> str:
    """The device for a setting: "auto" is cuda if Ray has a GPU, or, before Ray runs, if this machine has one.

    Raises:
        ValueError: it is "auto", and Ray has several nodes, or nodes that are started on demand, but no GPU now.
    """
    if wanted != "auto":
        return wanted
    if ray.is_initialized():
        if ray.cluster_resources().get("GPU", 0) >= 1:  # type: ignore[no-untyped-call]
            return "cuda"
        if _may_grow(ray.nodes()):  # type: ignore[no-untyped-call]
            # The encoders would stay on CPUs for ever, however many GPUs join.
            raise ValueError(
                "encoder.device: this cluster has no GPU now, and nodes may join it later, so `auto` cannot choose: "
                "say `device: cuda` (encoders wait for nodes with GPUs) or `device: cpu`"
            )
        return "cpu"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "cuda" if Path("/proc/driver/nvidia/gpus").is_dir() and not hidden else "cpu"


def _may_grow(nodes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether Ray is a cluster rather than one machine: it has several nodes, or one that an autoscaler or KubeRay has
    started, which belongs to a group of nodes.

    Args:
        nodes: as `ray.nodes` describes them.
    """
    alive = [node for node in nodes if node["Alive"]]
    return len(alive) > 1 or any(NODE_GROUP in (node.get("Labels") or {}) for node in alive)


@functools.cache
def _default_app() -> Application:
    return build_app(GraphArgs())


if TYPE_CHECKING:
    app: Application
    """The graph with every default."""
else:

    def __getattr__(name: str) -> Application:
        # Built when it is asked for: where `auto` cannot choose a device, a config that names one must still find
        # `build_app` here.
        if name == "app":
            return _default_app()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
