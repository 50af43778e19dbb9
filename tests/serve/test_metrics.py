"""What a running graph tells Prometheus, read where Prometheus reads it."""

from functools import partial
from typing import Any

from tests.support.marqo_client import MarqoClient
from tests.support.metrics import scraped, wait_for


def test_models_their_load_times_and_batches(marqo: MarqoClient) -> None:
    of_marqo = partial(scraped, application="marqo")
    properties: dict[str, Any] = {"type": "random", "dimensions": 5}
    loads, batches = of_marqo("marqo_models_loads"), of_marqo("marqo_batch_items_count")
    marqo.embed(["a red circle"], model="metrics/one", properties=properties)
    wait_for(lambda: of_marqo("marqo_models_loads") > loads, "the load of a model")
    wait_for(lambda: of_marqo("marqo_batch_items_count") > batches, "a batch")
    assert of_marqo("marqo_models_load_seconds") > 0
    # Another test may have ejected the demo model, which is the only one here that counts bytes.
    marqo.embed(["a red circle"])
    wait_for(lambda: of_marqo("marqo_models_bytes") > 0, "the bytes of the demo model")
