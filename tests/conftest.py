"""One Ray Serve instance for the whole session, started the way `serve run CONFIG` starts it, and real local parts."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from marqo_client import MarqoClient

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import encoded, jpeg, photo
from operations.launch import deploy, running

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def demo_config() -> dict[str, Any]:
    """`config/demo.yaml`, small enough for several deployments on two cores: no autoscaling, tiny CPU shares."""
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
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


@pytest.fixture(scope="session")
def serve_instance() -> Iterator[Serve]:
    config = demo_config()
    config["http_options"]["port"] = free_port()
    # A generous number of CPUs on paper: the replicas of a test take turns on the real ones.
    with running(config, num_cpus=8, log_to_driver=False) as client:
        yield Serve(client, config)


@pytest.fixture(scope="session")
def marqo(serve_instance: Serve) -> MarqoClient:
    """Speaks to the main application as a Marqo API container does."""
    return MarqoClient(serve_instance.url)


@pytest.fixture(scope="session")
def image_host() -> Iterator[ImageHost]:
    """Serves `0.jpg` to `19.jpg`, a file for each way in which pictures are decoded, and some that are none."""
    whole = jpeg(photo(99, 200, 150))
    files = {f"{seed}.jpg": jpeg(photo(seed, 70 + 17 * seed, 120 - 3 * seed)) for seed in range(20)}
    files |= {f"{mode}.png": encoded(photo(30, 90, 120).convert(mode), "PNG") for mode in ("L", "P", "RGBA", "1")}
    files |= {f"a.{ext}": encoded(photo(31, 140, 90), ext) for ext in ("gif", "webp", "bmp", "tiff")}
    files |= {"cut.jpg": whole[: len(whole) // 2], "größe {1}.jpg": whole, "a.svg": b"<svg></svg>"}
    with ImageHost(files) as host:
        yield host


@pytest.fixture(scope="session")
def handle(serve_instance: Serve) -> Any:
    """The Python way in."""
    from ray import serve

    from deployments.ray_internals import for_this_thread

    # This process also runs Serve in its throughput mode, whose handles need an event loop to run on; callers from
    # elsewhere get this by default.
    return for_this_thread(serve.get_app_handle("marqo"))


@pytest.fixture
def application(serve_instance: Serve) -> Iterator[Callable[[dict[str, Any]], MarqoClient]]:
    """Deploys another application beside the main one for a single test: takes its config, gives a client for it."""

    def deploy_beside(config: dict[str, Any]) -> MarqoClient:
        serve_instance.deploy(config)
        client = MarqoClient(serve_instance.url + config["route_prefix"])
        assert requests.get(client.url + "/healthz", timeout=60).status_code == 200
        return client

    yield deploy_beside
    serve_instance.deploy()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that the threads of a forward pass would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
