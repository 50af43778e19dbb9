"""The deployment graph, built from typed arguments with a closed set of keys.

    serve run graph:app                     # one replica of each deployment, defaults
    serve run config/serve.yaml             # production: sizes, autoscaling, batching

No `from __future__ import annotations` here: Serve reads the annotation of the builder's argument at run time.
"""

import os
from pathlib import Path
from typing import cast

import ray
from ray.serve import Application, Deployment

from deployments.encoder.encoder import Encoder
from deployments.encoder.settings import BatchSettings, EncoderSettings
from deployments.ingress.ingress import Ingress, IngressSettings
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


def build_app(args: GraphArgs) -> Application:
    """The graph: an ingress that calls preprocessors and encoders.

    Args:
        args: an unknown key anywhere is an error.
    """
    # Ray annotates its decorator as if it returned the class.
    ingress, preprocessor, encoder = (cast(Deployment, each) for each in (Ingress, Preprocessor, Encoder))
    device = _device(args.encoder.device)
    encoder = encoder.options(ray_actor_options={"num_cpus": 1, "num_gpus": int(device == "cuda")})
    return ingress.bind(
        preprocessor.bind(args.preprocessor),
        encoder.bind(args.encoder.model_copy(update={"device": device})),
        args.ingress,
    )


def _device(wanted: str) -> str:
    """The device for a setting: "auto" is cuda if Ray has a GPU, or, before Ray runs, if this machine has one."""
    if wanted != "auto":
        return wanted
    if ray.is_initialized():
        return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"  # type: ignore[no-untyped-call]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "cuda" if Path("/proc/driver/nvidia/gpus").is_dir() and not hidden else "cpu"


app = build_app(GraphArgs())
