"""Who gives way to whom when the cores are busy."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from image_host import ImageHost
from marqo_client import MarqoClient


def niceness(deployment: str) -> list[int]:
    """Of each thread of the main application's replicas."""
    replicas = [
        process
        for process in psutil.Process(os.getpid()).children(recursive=True)
        if f"ServeReplica:marqo:{deployment}" in " ".join(process.cmdline())
    ]
    assert replicas
    threads = [thread for replica in replicas for thread in Path(f"/proc/{replica.pid}/task").iterdir()]
    # The 19th field; the second one, the name, may hold spaces.
    return [int((thread / "stat").read_text().rpartition(")")[2].split()[16]) for thread in threads]


def test_decoders_give_way_to_everybody(marqo: MarqoClient, image_host: ImageHost) -> None:
    marqo.results([f"{image_host.url}/0.jpg"], modality="image")
    preprocessor, encoder, ingress = map(niceness, ("Preprocessor", "Encoder", "Ingress"))
    assert max(preprocessor) == 19 > max(encoder)
    assert min(preprocessor) >= min(encoder) >= min(ingress)
