"""One application with several replicas of each kind, for all tests of this folder."""

import threading
from collections.abc import Iterator
from importlib.resources import files

import pytest

from tests.support.hub_host import HubHost
from tests.support.marqo_client import MarqoClient
from tests.support.replicas import APP, WEIGHTS, Replicated, models_by_replica, replicated_config
from tests.support.serve import Serve


@pytest.fixture(scope="package")
def replicated(serve_instance: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    from tests.support.metrics import scraped, wait_for  # imports Ray, whose environment is not set when pytest starts

    def calls(deployment: str) -> float:
        """A replica's own counter, health checks not among them."""
        return scraped("serve_deployment_request_counter_total", application=APP, deployment=deployment)

    may_download = threading.Event()
    may_download.set()
    weights = {WEIGHTS: (files("embedding.assets") / WEIGHTS).read_bytes()}
    cache = tmp_path_factory.mktemp("models")

    def wait(_: str) -> None:
        may_download.wait()

    with HubHost({"owner/name": weights}, before=wait) as hub:
        client = MarqoClient(serve_instance.add(replicated_config(hub, cache)))
        try:
            for deployment in ("Preprocessor", "Encoder"):
                wait_for(lambda each=deployment: calls(each) > 0, f"a call of {deployment}")  # type: ignore[misc]
            first_calls = {deployment: calls(deployment) for deployment in ("Preprocessor", "Encoder")}
            first_models = list(models_by_replica(client).values())
            yield Replicated(client, hub, may_download, cache, first_calls, first_models)
        finally:
            may_download.set()
            serve_instance.remove(APP)


@pytest.fixture(scope="package")
def client(replicated: Replicated) -> MarqoClient:
    return replicated.client
