"""Which processes have priority when the cores are busy."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.lib.image_host import ImageHost
from tests.support.ingress import vectors
from tests.support.marqo_client import MarqoClient
from tests.support.serve import replica_pids


def niceness(deployment: str) -> list[int]:
    """Of each thread of the main application's replicas."""
    found = []
    for pid in replica_pids(deployment, "marqo"):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it ended after it was listed, as threads of Ray's pools do at any time
                found.append(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    assert found
    return found


def test_decoders_give_way_to_everybody(marqo: MarqoClient, image_host: ImageHost) -> None:
    rows = vectors(marqo.results([image_host.url("/ok/0.jpg"), image_host.url("/ok/L.png")], "image"))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    preprocessor, encoder, ingress = map(niceness, ("Preprocessor", "Encoder", "Ingress"))
    assert max(preprocessor) == 19 > max(encoder)
    assert min(preprocessor) >= min(encoder) >= min(ingress)
