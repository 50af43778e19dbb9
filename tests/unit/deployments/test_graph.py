"""The builder's arguments and the configs that come with the project are closed: a typo is an error, not a default."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import graph
from benchmarks.lib.places import ROOT
from deployments.encoder.settings import BatchSettings
from deployments.ray_internals import build_application
from operations.config_file import read_config

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


@pytest.mark.parametrize(
    "args",
    [
        {"device": "cpu"},
        {"encoder": {"devise": "cpu"}},
        {"encoder": {"device": "gpu"}},
        {"ingress": {"image_chunk": 0}},
        {"preprocessor": {"fetch": {"max_byte": 1}}},
        {"preprocessor": {"fetch": {"allowed_networks": "not a network"}}},
    ],
)
def test_arguments_are_closed(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        graph.GraphArgs.model_validate(args)


def test_the_builder_takes_typed_arguments() -> None:
    """Serve types the builder's argument by its annotation; under postponed annotations it would be a plain dict."""
    with pytest.raises(ValidationError, match="devise"):
        build_application(graph.build_app, {"encoder": {"devise": "cpu"}})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_sizes_each_deployment(path: Path) -> None:
    for application in read_config(path)["applications"]:
        assert {deployment["name"] for deployment in application["deployments"]} == set(graph.USER_CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_nothing_listens_beyond_loopback(path: Path) -> None:
    assert read_config(path)["http_options"]["host"] == "127.0.0.1"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_preprocessors_and_encoders_scale_apart(path: Path) -> None:
    (application,) = read_config(path)["applications"]
    scaling = {d["name"]: d.get("autoscaling_config") for d in application["deployments"]}
    for name in ("Preprocessor", "Encoder"):
        wanted = {"min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s"}
        assert wanted <= set(scaling[name])
    assert scaling["Preprocessor"]["target_ongoing_requests"] != scaling["Encoder"]["target_ongoing_requests"]


def test_batches_can_fill() -> None:
    """A chunk larger than a batch never fits, and fewer ongoing requests than a batch has items never fill it."""
    for path in CONFIGS:
        (application,) = read_config(path)["applications"]
        args = graph.GraphArgs.model_validate(application["args"])
        encoder = next(d for d in application["deployments"] if d["name"] == "Encoder")
        batches = BatchSettings.model_validate(encoder["user_config"])
        assert args.ingress.image_chunk <= batches.max_image_batch
        assert encoder["max_ongoing_requests"] * args.ingress.image_chunk >= 2 * batches.max_image_batch


def test_a_cuda_encoder_asks_ray_for_one_gpu() -> None:
    args = graph.GraphArgs.model_validate({"encoder": {"device": "cuda"}})
    app = graph.build_app(args)
    (encoder,) = [
        d
        for d in app._bound_deployment.init_args
        if getattr(d, "_bound_deployment", None) and d._bound_deployment.name == "Encoder"
    ]
    assert encoder._bound_deployment.ray_actor_options["num_gpus"] == 1


def test_the_demo_config_is_the_default_of_make_serve() -> None:
    assert "CONFIG ?= config/demo.yaml" in (ROOT / "Makefile").read_text()
    assert yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())["http_options"]["port"] == 8881
