"""Who talks to whom: the deployment graph, built from closed, typed arguments.

    serve run graph:app                     # one replica of each, defaults
    serve run config/serve.yaml             # production: sizes, autoscaling, batching

No `from __future__ import annotations` here: Serve reads the builder's annotation at run time to type its argument.
"""

import os
from pathlib import Path

import ray
from ray.serve import Application

from deployments.encoder.encoder import Encoder
from deployments.encoder.settings import BatchSettings, EncoderSettings
from deployments.ingress.ingress import Ingress, IngressSettings
from deployments.preprocessor.preprocessor import Preprocessor, PreprocessorSettings
from deployments.replica import Settings


class GraphArgs(Settings):
    """The `args` of the application. Sizes, autoscaling and batch maxima are Serve's own options, under `deployments`.

    Args:
        ingress: chunk sizes and timeouts.
        preprocessor: fetching and decoding.
        encoder: device and models.
    """

    ingress: IngressSettings = IngressSettings()
    preprocessor: PreprocessorSettings = PreprocessorSettings()
    encoder: EncoderSettings = EncoderSettings()


USER_CONFIGS: dict[str, type[Settings] | None] = {"Ingress": None, "Preprocessor": None, "Encoder": BatchSettings}
"""The graph's deployments, with what their `user_config` may say."""


def build_app(args: GraphArgs) -> Application:
    """The graph: an ingress that calls preprocessors and encoders.

    Args:
        args: closed; an unknown key anywhere is an error.
    """
    device = _device(args.encoder.device)
    encoder = Encoder.options(ray_actor_options={"num_cpus": 1, "num_gpus": int(device == "cuda")})
    return Ingress.bind(
        Preprocessor.bind(args.preprocessor),
        encoder.bind(args.encoder.model_copy(update={"device": device})),
        args.ingress,
    )


def _device(wanted: str) -> str:
    """ "auto" is cuda if Ray has a GPU to give, or, before Ray runs, if this machine has one."""
    if wanted != "auto":
        return wanted
    if ray.is_initialized():
        return "cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return "cuda" if Path("/proc/driver/nvidia/gpus").is_dir() and not hidden else "cpu"


app = build_app(GraphArgs())
