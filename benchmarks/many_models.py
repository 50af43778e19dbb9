"""Twenty models through a budget that holds five: 8 clients ask for models at random, and every vector is checked.

    python -m benchmarks.many_models [--seconds 120]

Prints requests, errors, the worst deviation from the owning library, loads and evictions, the most bytes of weights
that were held, evicted models in use included, and the memory of the encoder's process in the first and last third.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import psutil
import requests
import yaml

from benchmarks.lib.places import OUT, ROOT
from benchmarks.lib.process import free_port
from operations.launch import running

MODELS, HELD, CLIENTS = 20, 5, 8
ARCHITECTURE = "many-models"
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
TEXTS = ["a red circle", "two green stars on a blue background", ""]


@dataclass
class Tally:
    """What all clients saw."""

    requests: int = 0
    errors: list[str] = field(default_factory=list)
    worst: float = 0.0
    most_bytes: int = 0
    loads: int = 0
    evictions: int = 0
    resident: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def checkpoints(folder: Path) -> tuple[list[dict[str, Any]], list[np.ndarray], int]:
    """Properties of the models, open_clip's own vectors of TEXTS for each, and the bytes of one model."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    tokens = open_clip.get_tokenizer(ARCHITECTURE)(TEXTS)
    properties, expected, nbytes = [], [], 0
    for number in range(MODELS):
        torch.manual_seed(number)
        model = open_clip.create_model(ARCHITECTURE).eval()
        path = folder / f"{number}.safetensors"
        save_file(model.state_dict(), path)
        properties.append(
            {"name": ARCHITECTURE, "type": "open_clip", "dimensions": 64, "localpath": str(path), "size": 32}
        )
        with torch.inference_mode():
            expected.append(model.encode_text(tokens, normalize=True).numpy())
        nbytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return properties, expected, nbytes


def ask(url: str, number: int, properties: Mapping[str, Any]) -> np.ndarray:
    """Vectors of TEXTS from one model."""
    body = {
        "modality": "language",
        "contents": TEXTS,
        "modelConfig": {"modelName": f"many/{number}", "modelProperties": properties},
        "preprocessingConfig": {"modality": "language"},
    }
    kind = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    reply = requests.post(f"{url}/vectorise", data=msgpack.packb(body), headers=kind, timeout=120)
    answer = msgpack.unpackb(reply.content, object_hook=msgpack_numpy.decode)
    if reply.status_code != 200:
        raise RuntimeError(f"{reply.status_code}: {answer['detail']}")
    return np.stack([chunks[0][1] for chunks in answer["result"]])


def client(
    url: str,
    seed: int,
    until: float,
    properties: Sequence[Mapping[str, Any]],
    expected: Sequence[np.ndarray],
    tally: Tally,
) -> None:
    """One client's requests, until the time is up."""
    choice = random.Random(seed)
    while time.monotonic() < until:
        number = choice.randrange(MODELS)
        try:
            worst = float(np.abs(ask(url, number, properties[number]) - expected[number]).max())
        except Exception as error:
            with tally.lock:
                tally.errors.append(str(error))
            continue
        with tally.lock:
            tally.requests += 1
            tally.worst = max(tally.worst, worst)


def watch(until: float, tally: Tally) -> None:
    """What the encoder says of its model cache, and what its process takes, several times a second."""
    from ray import serve

    from deployments.ray_internals import for_this_thread

    encoder = for_this_thread(serve.get_deployment_handle("Encoder", "marqo"))
    process = encoder_process()
    while time.monotonic() < until:
        (loaded,) = encoder.broadcast("loaded").results(timeout_s=60)
        tally.most_bytes = max(tally.most_bytes, loaded.stats.bytes)
        tally.loads, tally.evictions = loaded.stats.loads, loaded.stats.evictions
        tally.resident.append(process.memory_info().rss)
        time.sleep(0.2)


def encoder_process() -> psutil.Process:
    """Of the only replica."""
    mark = "ServeReplica:marqo:Encoder"
    (process,) = (p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or []))
    return process


def mean_mib(values: Sequence[int]) -> float:
    """Of bytes."""
    return round(statistics.mean(values) / 2**20, 1)


def main() -> int:
    """Starts a server, runs the clients, prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=120.0)
    seconds = parser.parse_args().seconds
    folder = OUT / "many"
    properties, expected, nbytes = checkpoints(folder)
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    config["http_options"]["port"] = free_port()
    encoder = config["applications"][0]["args"]["encoder"]
    encoder |= {"preload": [], "architectures": [str(folder)], "model_budget_bytes": HELD * nbytes}
    for deployment in config["applications"][0]["deployments"]:
        deployment.pop("autoscaling_config", None)
    tally = Tally()
    with running(config, log_to_driver=False), ThreadPoolExecutor(CLIENTS + 1) as pool:
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        until = time.monotonic() + seconds
        work = [pool.submit(client, url, seed, until, properties, expected, tally) for seed in range(CLIENTS)]
        work.append(pool.submit(watch, until, tally))
        for one in work:
            one.result()
    report = {
        "seconds": seconds,
        "requests": tally.requests,
        "errors": len(tally.errors),
        "worst deviation": tally.worst,
        "budget bytes": HELD * nbytes,
        "most bytes held": tally.most_bytes,
        "loads": tally.loads,
        "evictions": tally.evictions,
        "resident MiB, first third": mean_mib(tally.resident[: len(tally.resident) // 3]),
        "resident MiB, last third": mean_mib(tally.resident[-len(tally.resident) // 3 :]),
    }
    print(json.dumps(report, indent=1), *tally.errors[:5], sep="\n")
    return int(bool(tally.errors) or tally.worst > 1e-5 or tally.most_bytes > HELD * nbytes)


if __name__ == "__main__":
    sys.exit(main())
