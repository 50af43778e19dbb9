"""The builder's arguments and the configs that come with the project are closed: a typo is an error, not a default."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from pydantic import ValidationError

import graph
from benchmarks.lib.places import ROOT
from deployments.encoder.encoder import Encoder
from deployments.encoder.settings import BatchSettings
from deployments.ingress.ingress import Ingress
from deployments.preprocessor.preprocessor import Preprocessor
from deployments.ray_internals import build_application
from operations.config_file import read_config

CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
DEPLOYMENTS: tuple[Any, ...] = (Ingress, Preprocessor, Encoder)


@pytest.mark.parametrize(
    "args",
    [
        {"device": "cpu"},
        {"encoder": {"devise": "cpu"}},
        {"encoder": {"device": "gpu"}},
        {"ingress": {"image_chunk": 0}},
        {"preprocessor": {"fetch": {"max_byte": 1}}},
        {"preprocessor": {"jpeg_scaling": "quick"}},
        {"preprocessor": {"jpeg_scaling": None}},
        {"encoder": {"jpeg_scaling": "fast"}},
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
def test_only_a_cluster_listens_beyond_loopback(path: Path) -> None:
    """There a HAProxy asks the replicas of other nodes."""
    host = "0.0.0.0" if path.name == "cluster.yaml" else "127.0.0.1"
    assert read_config(path)["http_options"]["host"] == host


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_preprocessors_and_encoders_scale_separately(path: Path) -> None:
    (application,) = read_config(path)["applications"]
    scaling = {d["name"]: d.get("autoscaling_config") for d in application["deployments"]}
    for name in ("Preprocessor", "Encoder"):
        wanted = {"min_replicas", "max_replicas", "target_ongoing_requests", "upscale_delay_s", "downscale_delay_s"}
        assert wanted <= set(scaling[name])
    assert scaling["Preprocessor"]["target_ongoing_requests"] != scaling["Encoder"]["target_ongoing_requests"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_chunk_fits_into_a_batch(path: Path) -> None:
    """A larger one would run in several passes, none of which it shares with other chunks."""
    (application,) = read_config(path)["applications"]
    args = graph.GraphArgs.model_validate(application["args"])
    encoder = next(d for d in application["deployments"] if d["name"] == "Encoder")
    batches = BatchSettings.model_validate(encoder["user_config"])
    assert args.ingress.image_chunk <= batches.max_image_batch
    assert args.ingress.text_chunk <= batches.max_text_batch


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_no_call_waits_in_the_queue_of_serve(path: Path) -> None:
    """Searches would wait there behind indexing. A replica takes every call that four ingresses could send it."""
    (application,) = read_config(path)["applications"]
    limits = graph.GraphArgs.model_validate(application["args"]).ingress
    calls = 4 * (limits.max_items_in_flight + limits.max_searches_in_flight)
    own = {each.name: each.max_ongoing_requests for each in DEPLOYMENTS}
    for deployment in application["deployments"]:
        assert deployment.get("max_ongoing_requests", own[deployment["name"]]) >= calls


class Bound:
    """In place of a deployment: knows its options, and to what it was bound."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self._options = name, options
        self.arguments: tuple[Any, ...] = ()

    def options(self, **options: Any) -> "Bound":
        return Bound(self.name, **options)

    def bind(self, *arguments: Any) -> "Bound":
        self.arguments = arguments
        return self

    def all_options(self) -> dict[str, dict[str, Any]]:
        """By name, of this one and those that it calls."""
        inner = [each.all_options() for each in self.arguments if isinstance(each, Bound)]
        return {self.name: self._options} | {name: options for each in inner for name, options in each.items()}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    """Builds the graph of some arguments; gives the options of each deployment in it."""
    for name in ("Ingress", "Preprocessor", "Encoder"):
        monkeypatch.setattr(graph, name, Bound(getattr(graph, name).name))

    def build(**arguments: Any) -> dict[str, dict[str, Any]]:
        return cast(Bound, graph.build_app(graph.GraphArgs.model_validate(arguments))).all_options()

    return build


def test_a_cuda_encoder_asks_ray_for_one_gpu(built: Callable[..., dict[str, dict[str, Any]]]) -> None:
    for device, gpus in (("cuda", 1), ("cpu", 0)):
        options = built(encoder={"device": device})
        assert options["Encoder"]["ray_actor_options"]["num_gpus"] == gpus
        assert options["Ingress"] == options["Preprocessor"] == {}


def test_a_cluster_names_its_device() -> None:
    (application,) = read_config(ROOT / "config" / "cluster.yaml")["applications"]
    assert application["args"]["encoder"]["device"] == "cuda"


@pytest.mark.parametrize(
    ("nodes", "grows"),
    [
        ([{"Alive": True, "Labels": {}}], False),
        ([{"Alive": True, "Labels": {}}, {"Alive": False, "Labels": {graph.NODE_GROUP: "workers"}}], False),
        ([{"Alive": True, "Labels": {}}, {"Alive": True, "Labels": {}}], True),
        ([{"Alive": True, "Labels": {graph.NODE_GROUP: "headgroup"}}], True),
    ],
)
def test_a_cluster_is_known_by_its_nodes(nodes: list[dict[str, Any]], grows: bool) -> None:
    assert graph._may_grow(nodes) == grows


def test_the_default_graph_is_built_once_and_when_it_is_asked_for() -> None:
    program = "import graph; assert 'app' not in vars(graph); assert graph.app is graph.app"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
    with pytest.raises(AttributeError, match="has no attribute 'apps'"):
        graph.apps  # type: ignore[attr-defined] # noqa: B018


def test_the_graph_names_its_deployments(built: Callable[..., dict[str, dict[str, Any]]]) -> None:
    assert built().keys() == graph.USER_CONFIGS.keys()


def test_the_demo_config_is_the_default_of_make_serve() -> None:
    assert "CONFIG ?= config/demo.yaml" in (ROOT / "Makefile").read_text()
    assert yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())["http_options"]["port"] == 8881
