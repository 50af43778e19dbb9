"""What a running graph tells Prometheus, read where Prometheus reads it."""

from functools import partial
from typing import Any

from tests.support.marqo_client import MarqoClient
from tests.support.metrics import scraped, wait_for


def test_models_their_load_times_and_batches(marqo: MarqoClient) -> None:
    of_marqo = partial(scraped, application="marqo")
    properties: dict[str, Any] = {"type": "random", "dimensions": 5}
    names = ("marqo_models_loads", "marqo_models_load_seconds", "marqo_batch_items_count")
    before = {name: of_marqo(name) for name in names}

    def rose(name: str) -> bool:
        return of_marqo(name) > before[name]

    marqo.embed(["a red circle"], model="metrics/one", properties=properties)
    # Each by itself: an export of Ray's may come between two that were set together.
    for name in names:
        wait_for(partial(rose, name), name)
    # Another test may have ejected the demo model, which is the only one here that counts bytes.
    marqo.embed(["a red circle"])
    wait_for(lambda: of_marqo("marqo_models_bytes") > 0, "the bytes of the demo model")
