"""Our server for a benchmark: config/demo.yaml with other values, run as `make serve` runs it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.lib.cpu import CpuMeter, ray_group
from benchmarks.lib.models import FOLDER
from benchmarks.lib.places import OUT, ROOT
from benchmarks.lib.process import free_port, server


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the graph. Without `autoscaling` it stays as it is: a benchmark measures one shape at a time.

    Args:
        ingresses: replicas.
        preprocessors: replicas.
        decode_threads: of each preprocessor.
        encoders: replicas.
        encoder_threads: torch threads of each encoder; None = one for each core.
        image_chunk: pictures in one call of a preprocessor.
        max_image_batch: most pictures in one forward pass.
        device: of the encoders.
        ingress: further settings of the ingress.
        fetch: settings of downloads, other than those of config/demo.yaml.
        models: how the encoders load models, the same way.
        autoscaling: `autoscaling_config` by deployment, in place of its number of replicas.
    """

    ingresses: int = 1
    preprocessors: int = 1
    decode_threads: int = 2
    encoders: int = 1
    encoder_threads: int | None = None
    image_chunk: int = 32
    max_image_batch: int = 32
    device: str = "cpu"
    ingress: Mapping[str, Any] = field(default_factory=dict)
    fetch: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    autoscaling: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs.

    Args:
        url: where it answers.
        pid: its first process.
        config: the file with its Serve config.
    """

    url: str
    pid: int
    config: Path

    def meter(self) -> CpuMeter:
        """CPU time of all of its processes, by deployment."""
        return CpuMeter(self.pid, ray_group)


@contextlib.contextmanager
def graph(shape: Shape | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """The graph, ready, while the context lasts.

    Args:
        shape: its size.
        environment: Ray's own settings, for instance RAY_SERVE_ENABLE_HA_PROXY.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    path = written(_config(shape or Shape(), port))
    command = [sys.executable, "-m", "operations.launch", str(path)]
    with server("graph", command, f"{url}/healthz", environment, ready_word="ready: ") as pid:
        yield Running(url, pid, path)


def described(shape: Shape | None = None) -> dict[str, Any]:
    """The shape as plain data, for reports."""
    return asdict(shape or Shape())


def demo_config(port: int) -> dict[str, Any]:
    """The Serve config of config/demo.yaml, on this port of loopback and without autoscaling."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    for deployment in config["applications"][0]["deployments"]:
        deployment.pop("autoscaling_config", None)
    return config


def written(config: Mapping[str, Any]) -> Path:
    """Writes a Serve config to a file, and returns its path."""
    path = OUT / "configs" / f"{config['http_options']['port']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def _config(shape: Shape, port: int) -> dict[str, Any]:
    config = demo_config(port)
    (application,) = config["applications"]
    arguments = application["args"]
    arguments["ingress"] = {"image_chunk": shape.image_chunk, **shape.ingress}
    arguments["preprocessor"]["decode_threads"] = shape.decode_threads
    arguments["preprocessor"]["fetch"] |= shape.fetch
    arguments["encoder"] |= {
        "device": shape.device,
        "threads": shape.encoder_threads,
        "preload": [],
        "architectures": [str(FOLDER)],
    }
    arguments["encoder"]["models"] |= shape.models
    replicas = {"Ingress": shape.ingresses, "Preprocessor": shape.preprocessors, "Encoder": shape.encoders}
    for deployment in application["deployments"]:
        if scaling := shape.autoscaling.get(deployment["name"]):
            deployment["autoscaling_config"] = dict(scaling)
        else:
            deployment["num_replicas"] = replicas[deployment["name"]]
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        if deployment["name"] == "Encoder":
            deployment["user_config"]["max_image_batch"] = shape.max_image_batch
    return config
