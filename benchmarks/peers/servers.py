"""How each server is started and asked. The others are configured as their own documentation advises, and where it
leaves a choice in several ways, of which the comparison takes the best."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.lib.cpu import CpuMeter
from benchmarks.lib.models import Checkpoint
from benchmarks.lib.places import OUT
from benchmarks.lib.process import free_port, server
from benchmarks.lib.server import Shape, graph
from benchmarks.lib.target import Target, json_target, marqo
from benchmarks.peers.hf import hf_folder
from benchmarks.peers.onnx import onnx_file
from benchmarks.peers.venvs import venv

HERE = Path(__file__).parent
CORES = os.cpu_count() or 1
Runtime = Literal["torch", "onnx", "torch-bf16"]
"""What runs the model of the plain server and of BentoML; `onnx` is ONNX Runtime. See towers.py."""
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
def ours(checkpoint: Checkpoint, precision: str = "fp32") -> Iterator[Peer]:
    """This project's server, with `cpu_precision` as given."""
    with graph(Shape(models={"cpu_precision": precision})) as running:
        yield Peer(marqo(running.url, checkpoint.properties), running.pid)


@contextlib.contextmanager
def plain(checkpoint: Checkpoint, python: str | None = None, runtime: Runtime = "torch") -> Iterator[Peer]:
    """FastAPI, Pillow and open_clip in one process; run with the interpreter `python` if that is given."""
    port = free_port()
    command = [python or str(venv("plain") / "python"), str(HERE / "plain_server.py"), str(port)]
    environment = _tower(checkpoint, runtime)
    with server("plain", command, f"http://127.0.0.1:{port}/healthz", environment) as pid:
        yield Peer(json_target(f"http://127.0.0.1:{port}/embed", {}, "urls", lambda reply: reply), pid)


@contextlib.contextmanager
def bentoml(checkpoint: Checkpoint, workers: int = 1, batch: int = 64, runtime: Runtime = "torch") -> Iterator[Peer]:
    """BentoML: URLs with adaptive batching of up to `batch` pictures, and an interface for tensors."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(venv("bentoml") / "bentoml"), "serve", "bento_service:Clip"]
    command += ["--working-dir", str(HERE), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **_tower(checkpoint, runtime),
        "WORKERS": str(workers),
        "MAX_BATCH": str(batch),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with server(f"bentoml-{workers}", command, f"{url}/readyz", environment) as pid:
        urls = json_target(f"{url}/embed", {}, "urls", lambda reply: reply)
        tensors = json_target(f"{url}/embed_tensors", {}, "pixels", lambda reply: reply)
        yield Peer(urls, pid, tensors)


@contextlib.contextmanager
def infinity(
    checkpoint: Checkpoint, engine: str = "torch", compiled: bool = False, replicas: int = 1
) -> Iterator[Peer]:
    """infinity, with its default batch size. Its precision is fp32: on a CPU it takes no other for pictures.

    Args:
        checkpoint: what it serves.
        engine: "torch", or "optimum" for ONNX Runtime, which as of 0.0.78 it does not implement for pictures.
        compiled: whether torch compiles the model.
        replicas: of the model, each in threads of its own.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(venv("infinity") / "infinity_emb"), "v2", "--model-id", str(hf_folder(checkpoint))]
    command += ["--served-model-name", "clip", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--engine", engine, "--device", "cpu", "--dtype", "float32"]
    command += ["--compile" if compiled else "--no-compile"]
    command += ["--device-id", ",".join(map(str, range(replicas)))] if replicas > 1 else []
    environment = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    environment |= {"INFINITY_MEDIA_URL_BLACKLIST": MEDIA_BLACKLIST, "INFINITY_HOME": str(OUT)}
    environment |= {"OMP_NUM_THREADS": str(max(1, CORES // replicas))}
    with server("infinity", command, f"{url}/health", environment) as pid:
        request = {"model": "clip", "modality": "image"}
        yield Peer(json_target(f"{url}/embeddings", request, "input", _openai_rows), pid)


def _tower(checkpoint: Checkpoint, runtime: Runtime) -> dict[str, str]:
    """The variables of towers.py."""
    variables = {"ARCHITECTURE": checkpoint.architecture, "WEIGHTS": str(checkpoint.path), "RUNTIME": runtime}
    return variables | ({"ONNX": str(onnx_file(checkpoint))} if runtime == "onnx" else {})


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _openai_rows(reply: dict[str, list[dict[str, list[float]]]]) -> list[list[float]]:
    return [entry["embedding"] for entry in reply["data"]]


Server = Callable[[Checkpoint], AbstractContextManager[Peer]]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A server in one configuration.

    Args:
        name: in reports.
        family: which server it is; the best of a family is compared.
        way: what runs the model.
        start: starts it with a model.
        clients: how many ask it at the same time.
    """

    name: str
    family: str
    way: str
    start: Server
    clients: int

    @property
    def precision(self) -> str:
        """Of its arithmetic. Only configurations of the same precision are rivals within a family."""
        return "bf16" if self.way.endswith("bf16") else "fp32"


def our_entrants(clients: int, bf16: bool) -> list[Entrant]:
    """This project's server, in fp32 and if wanted in bf16 too."""
    entrants = [Entrant("ours", "ours", "fp32", ours, clients)]
    if bf16:
        entrants.append(Entrant("ours, bf16", "ours", "bf16", partial(ours, precision="bf16"), clients))
    return entrants


def infinity_entrants(clients: int) -> list[Entrant]:
    """Every way in which infinity can run a CLIP on a CPU."""
    ways: dict[str, Server] = {
        "torch": infinity,
        "torch, compiled": partial(infinity, compiled=True),
        f"torch, {_counted(CORES, 'replica')}": partial(infinity, replicas=CORES),
    }
    return [Entrant(f"infinity, {way}", "infinity", way, start, clients) for way, start in ways.items()]


def optimum(clients: int) -> Entrant:
    """infinity with ONNX Runtime, for the sentence with which it refuses."""
    return Entrant("infinity, optimum", "infinity", "optimum", partial(infinity, engine="optimum"), clients)


def plain_entrants(clients: int, runtimes: Sequence[Runtime]) -> list[Entrant]:
    """The plain server with each of the runtimes."""
    return [Entrant(f"plain, {one}", "plain", one, partial(plain, runtime=one), clients) for one in runtimes]


def bentoml_entrants(
    clients: Sequence[int], runtimes: Sequence[Runtime], batches: Sequence[int], workers: Sequence[int]
) -> list[Entrant]:
    """BentoML with each of the runtimes, numbers of workers, batch sizes and numbers of clients. The workers share the
    cores: one with all of them, or as many as there are cores with one each."""
    return [
        Entrant(
            f"BentoML, {runtime}, {_counted(count, 'worker')}, batches of {batch}, {asking} clients",
            "BentoML",
            runtime,
            partial(bentoml, workers=count, batch=batch, runtime=runtime),
            asking,
        )
        for runtime in runtimes
        for count in workers
        for batch in batches
        for asking in clients
    ]
