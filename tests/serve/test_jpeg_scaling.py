"""`preprocessor.jpeg_scaling` through the whole graph: what it changes, and that the fingerprints say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from benchmarks.lib.photo import jpeg, photo
from tests.support.ingress import data_uri, vectors
from tests.support.marqo_client import MSGPACK, MarqoClient
from tests.support.serve import Serve, sturdy_config

APP = "jpeg-scaling"
LARGE, SMALL = (data_uri(jpeg(photo(seed, *size)), "jpeg") for seed, size in ((1, (1100, 900)), (2, (240, 200))))


@pytest.fixture
def client(serve_instance: Serve) -> Iterator[Callable[[dict[str, Any]], MarqoClient]]:
    """Deploys the application with settings of its preprocessors, or changes them while it runs."""

    def deployed(settings: dict[str, Any]) -> MarqoClient:
        config = sturdy_config(APP, replicas=1)
        config["args"]["preprocessor"].update(settings)
        return MarqoClient(serve_instance.add(config))

    yield deployed
    serve_instance.remove(APP)


def fingerprint(client: MarqoClient, model: str) -> str:
    request = {
        "modality": "language",
        "contents": ["a text"],
        "modelConfig": {"modelName": model},
        "preprocessingConfig": {"modality": "language"},
    }
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK, "X-Embedding-Fingerprint": "1"}
    reply = client.post(msgpack.packb(request), headers)
    assert reply.status_code == 200
    return str(reply.headers["X-Embedding-Fingerprint"])


def test_the_choice_applies_at_once_and_shows_in_the_fingerprint(
    client: Callable[[dict[str, Any]], MarqoClient], marqo: MarqoClient
) -> None:
    plain = client({})
    exact, prints = vectors(plain.results([LARGE, SMALL], "image")), fingerprint(plain, "demo/clip")
    assert prints == fingerprint(marqo, "demo/clip")
    # The ingress keeps running, and with it what it knows of the model.
    changed = client({"jpeg_scaling": "fast"})
    fast = vectors(changed.results([LARGE, SMALL], "image"))
    np.testing.assert_allclose(fast[1], exact[1], atol=1e-6)
    assert 1e-5 < np.linalg.norm(fast[0] - exact[0]) < 0.0141, "a cosine of 0.9999"
    assert fingerprint(changed, "demo/clip") != prints
    assert fingerprint(changed, "random/small") == fingerprint(marqo, "random/small")
