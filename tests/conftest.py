"""One Ray Serve instance for the whole session, started the way `serve run CONFIG` starts it, and real local parts."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.photo import encoded, jpeg, photo
from benchmarks.lib.process import free_port
from operations.launch import running
from tests.support.commands import set_here
from tests.support.marqo_client import MarqoClient
from tests.support.serve import Serve, demo_config


def pytest_configure(config: pytest.Config) -> None:
    """Sets Ray's environment before any test module imports Ray; not in the process that only hands tests out."""
    if not config.getoption("numprocesses", None):
        set_here()


@pytest.fixture(scope="session")
def serve_instance() -> Iterator[Serve]:
    config = demo_config()
    config["http_options"]["port"] = free_port()
    # Ray's processes read it when they start; the servers that tests launch keep Ray's own ten seconds.
    quick = pytest.MonkeyPatch()
    quick.setenv("RAY_metrics_report_interval_ms", "1000")
    # Log lines can be read at once.
    quick.setenv("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1")
    # A generous number of CPUs on paper: the replicas of a test take turns on the real ones.
    with running(config, num_cpus=8, log_to_driver=False) as client:
        quick.undo()
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
    """The Python handle."""
    from ray import serve

    from deployments.ray_internals import for_this_thread

    # This process also runs Serve in its throughput mode, whose handles need an event loop to run on; callers from
    # elsewhere get this by default.
    return for_this_thread(serve.get_app_handle("marqo"))


@pytest.fixture
def application(serve_instance: Serve) -> Iterator[Callable[[dict[str, Any]], MarqoClient]]:
    """Deploys another application beside the main one for a single test: takes its config, gives a client for it."""

    added = []

    def add(config: dict[str, Any]) -> MarqoClient:
        client = MarqoClient(serve_instance.add(config))
        added.append(config["name"])
        assert client.get("/healthz").status_code == 200
        return client

    yield add
    for name in added:
        serve_instance.remove(name)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that the threads of a forward pass would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
