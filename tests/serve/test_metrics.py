"""What a running graph tells Prometheus, read where Prometheus reads it."""

from functools import partial
from typing import Any

from tests.support.marqo_client import MarqoClient
from tests.support.metrics import scraped, wait_for
from tests.support.serve import Serve
from tests.support.serve import preloading_config as config


def test_models_their_load_times_and_batches(marqo: MarqoClient) -> None:
    properties: dict[str, Any] = {"type": "random", "dimensions": 5}
    loads, batches = scraped("marqo_models_loads"), scraped("marqo_batch_items_count")
    marqo.embed(["a red circle"], model="metrics/one", properties=properties)
    wait_for(lambda: scraped("marqo_models_loads") > loads, "the load of a model")
    wait_for(lambda: scraped("marqo_batch_items_count") > batches, "a batch")
    assert scraped("marqo_models_load_seconds") > 0
    assert scraped("marqo_models_bytes") > 0, "the demo model is preloaded"


def test_an_ingress_goes_through_the_graph_before_anybody_asks(serve_instance: Serve) -> None:
    """One picture to a preprocessor and on to an encoder, which opens the connections; no model is loaded for it."""

    def called_once(deployment: str) -> bool:
        # A replica's own counter of calls, health checks not among them.
        return scraped("serve_deployment_request_counter_total", application="warmed", deployment=deployment) == 1

    warmed = config(1) | {"name": "warmed", "route_prefix": "/warmed"}
    try:
        serve_instance.deploy(warmed)
        for deployment in ("Preprocessor", "Encoder"):
            wait_for(partial(called_once, deployment), f"the warm-up of {deployment}")
    finally:
        serve_instance.deploy()
