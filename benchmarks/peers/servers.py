"""How each server is started and asked. The others are configured as their own documentation advises."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.lib.cpu import CpuMeter
from benchmarks.lib.models import Checkpoint
from benchmarks.lib.places import OUT
from benchmarks.lib.process import free_port, server
from benchmarks.lib.server import graph
from benchmarks.lib.target import Target, json_target, marqo
from benchmarks.peers.hf import hf_folder
from benchmarks.peers.venvs import venv

HERE = Path(__file__).parent
# infinity's default without 127.0.0.0/8, since the pictures come from this machine: as our server's `allowed_networks`.
MEDIA_BLACKLIST = (
    "localhost;*.localhost;0.0.0.0/8;10.0.0.0/8;100.64.0.0/10;169.254.0.0/16;172.16.0.0/12;192.168.0.0/16;224.0.0.0/4;"
    "::/128;::1/128;fc00::/7;fe80::/10;ff00::/8"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that runs.

    Args:
        target: how it is asked for pictures by URL.
        pid: its first process.
        tensors: how it is asked with preprocessed float32 pictures as JSON, if it takes those.
    """

    target: Target
    pid: int
    tensors: Target | None = None

    def meter(self) -> CpuMeter:
        """CPU time of all of its processes."""
        return CpuMeter(self.pid)


@contextlib.contextmanager
def ours(checkpoint: Checkpoint) -> Iterator[Peer]:
    """This project's server."""
    with graph() as running:
        yield Peer(marqo(running.url, checkpoint.properties), running.pid)


@contextlib.contextmanager
def plain(checkpoint: Checkpoint, python: str | None = None) -> Iterator[Peer]:
    """FastAPI, Pillow and open_clip in one process; run with the interpreter `python` if that is given."""
    port = free_port()
    script = str(HERE / "plain_server.py")
    command = [
        python or str(venv("plain") / "python"),
        script,
        checkpoint.architecture,
        str(checkpoint.path),
        str(port),
    ]
    with server("plain", command, f"http://127.0.0.1:{port}/healthz") as pid:
        yield Peer(json_target(f"http://127.0.0.1:{port}/embed", {}, "urls", lambda reply: reply), pid)


@contextlib.contextmanager
def bentoml(checkpoint: Checkpoint, workers: int = 1, batch: int = 64) -> Iterator[Peer]:
    """BentoML: URLs with adaptive batching of up to `batch` pictures, and an interface for tensors."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(venv("bentoml") / "bentoml"), "serve", "bento_service:Clip"]
    command += ["--working-dir", str(HERE), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "ARCHITECTURE": checkpoint.architecture,
        "WEIGHTS": str(checkpoint.path),
        "WORKERS": str(workers),
        "MAX_BATCH": str(batch),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with server(f"bentoml-{workers}", command, f"{url}/readyz", environment) as pid:
        urls = json_target(f"{url}/embed", {}, "urls", lambda reply: reply)
        tensors = json_target(f"{url}/embed_tensors", {}, "pixels", lambda reply: reply)
        yield Peer(urls, pid, tensors)


@contextlib.contextmanager
def infinity(checkpoint: Checkpoint) -> Iterator[Peer]:
    """infinity, with its default engine and batch size."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(venv("infinity") / "infinity_emb"), "v2", "--model-id", str(hf_folder(checkpoint))]
    command += ["--served-model-name", "clip", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32"]
    environment = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    environment |= {"INFINITY_MEDIA_URL_BLACKLIST": MEDIA_BLACKLIST, "INFINITY_HOME": str(OUT)}
    with server("infinity", command, f"{url}/health", environment) as pid:
        request = {"model": "clip", "modality": "image"}
        yield Peer(json_target(f"{url}/embeddings", request, "input", _openai_rows), pid)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _openai_rows(reply: dict[str, list[dict[str, list[float]]]]) -> list[list[float]]:
    return [entry["embedding"] for entry in reply["data"]]


Server = Callable[[Checkpoint], AbstractContextManager[Peer]]
CORES = os.cpu_count() or 1
SERVERS: dict[str, Server] = {"ours": ours, "infinity": infinity, "plain": plain}
"""By the name in reports. Configurations of BentoML are in BENTOML."""
BENTOML: dict[str, Server] = {
    f"BentoML, {_counted(workers, 'worker')}, batches of {batch}": partial(bentoml, workers=workers, batch=batch)
    for workers in sorted({1, CORES})
    for batch in (16, 32, 64, 128)
}
"""Configurations, of which the best ones are compared."""
