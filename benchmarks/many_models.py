"""Twenty models with a memory budget for five: 8 clients ask for models at random, and every vector is checked.

Reported are requests and errors, the largest deviation from open_clip's own vectors, loads and evictions, the most
bytes of weights that were held (of evicted models in use too), and the memory of the encoder's process over time.
"""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from benchmarks.lib.benchmark import Benchmark, Figures, Option, Result, Table
from benchmarks.lib.places import OUT
from benchmarks.lib.process import free_port
from benchmarks.lib.server import demo_config
from benchmarks.lib.target import Target, marqo
from operations.launch import running

MODELS, HELD, CLIENTS = 20, 5, 8
SECONDS, QUICK_SECONDS = 120.0, 15.0
SAMPLE_S = 0.2
MOST_DEVIATION = 1e-5
"""Of a component of a vector."""
ARCHITECTURE = "many-models"
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
TEXTS = ["a red circle", "two green stars on a blue background", ""]


@dataclass
class Tally:
    """What all clients and the sampling thread have seen so far."""

    requests: int = 0
    errors: list[str] = field(default_factory=list)
    worst: float = 0.0
    most_bytes: int = 0
    loads: int = 0
    evictions: int = 0
    resident: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def measure(quick: bool, seconds: float | None = None) -> Result:
    """What the clients and the encoder have seen within `seconds`."""
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    folder = OUT / "many"
    properties, expected, nbytes = checkpoints(folder)
    config = demo_config(free_port())
    encoder = config["applications"][0]["args"]["encoder"]
    encoder |= {"preload": [], "architectures": [str(folder)], "model_budget_bytes": HELD * nbytes}
    tally = Tally()
    with running(config, log_to_driver=False), ThreadPoolExecutor(CLIENTS + 1) as pool:
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        targets = [marqo(url, one, "language", name=f"many/{number}") for number, one in enumerate(properties)]
        until = time.monotonic() + seconds
        work = [pool.submit(client, seed, until, targets, expected, tally) for seed in range(CLIENTS)]
        work.append(pool.submit(watch, until, tally))
        for one in work:
            one.result()
    return {
        "seconds": seconds,
        "requests": tally.requests,
        "errors": len(tally.errors),
        "what was wrong": tally.errors[:5],
        "worst deviation": tally.worst,
        "budget bytes": HELD * nbytes,
        "most bytes held": tally.most_bytes,
        "loads": tally.loads,
        "evictions": tally.evictions,
        "resident bytes": tally.resident,
    }


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


def client(seed: int, until: float, targets: Sequence[Target], expected: Sequence[np.ndarray], tally: Tally) -> None:
    """One client's requests, each for a random model, until the time is up."""
    choice = random.Random(seed)
    while time.monotonic() < until:
        number = choice.randrange(MODELS)
        try:
            worst = float(np.abs(ask(targets[number]) - expected[number]).max())
        except Exception as error:
            with tally.lock:
                tally.errors.append(str(error))
            continue
        with tally.lock:
            tally.requests += 1
            tally.worst = max(tally.worst, worst)


def ask(target: Target) -> np.ndarray:
    """Vectors of TEXTS from one model.

    Raises:
        ValueError: the server refused the request, or a text has no vector.
    """
    reply = requests.post(target.url, data=target.pack(TEXTS), headers=dict(target.headers), timeout=120)
    if reply.status_code != 200:
        raise ValueError(f"{reply.status_code}: {reply.content[:500]!r}")
    return target.unpack(reply.content)


def watch(until: float, tally: Tally) -> None:
    """Samples the encoder's model cache and the memory of its process until the time is up."""
    from ray import serve

    from deployments.ray_internals import for_this_thread

    encoder = for_this_thread(serve.get_deployment_handle("Encoder", "marqo"))
    process = encoder_process()
    while time.monotonic() < until:
        (loaded,) = encoder.broadcast("loaded").results(timeout_s=60)
        tally.most_bytes = max(tally.most_bytes, loaded.stats.bytes)
        tally.loads, tally.evictions = loaded.stats.loads, loaded.stats.evictions
        tally.resident.append(process.memory_info().rss)
        time.sleep(SAMPLE_S)


def encoder_process() -> psutil.Process:
    """The process of the only encoder replica."""
    mark = "ServeReplica:marqo:Encoder"
    (process,) = (p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or []))
    return process


def rows(result: Mapping[str, Any]) -> Table:
    """Every figure of the result."""
    first, last = thirds(result)
    return [
        ["", "in all"],
        ["seconds", f"{result['seconds']:.0f}"],
        *([key, str(result[key])] for key in ("requests", "errors", "loads", "evictions")),
        ["worst deviation of a vector", f"{result['worst deviation']:.1e}"],
        ["budget for weights, MiB", f"{result['budget bytes'] / 2**20:.1f}"],
        ["most weights held, MiB", f"{result['most bytes held'] / 2**20:.1f}"],
        ["resident memory of the encoder, first third, MiB", f"{first:.1f}"],
        ["… last third, MiB", f"{last:.1f}"],
    ]


def summary(result: Mapping[str, Any]) -> Figures:
    """Errors, the share of the budget that was used at most, and the growth of the encoder's memory."""
    first, last = thirds(result)
    return {
        "many_models_errors": [float(result["errors"])],
        "many_models_most_bytes_over_budget": [result["most bytes held"] / result["budget bytes"]],
        "many_models_mib_grown": [last - first],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Resident memory of the encoder's process over time."""
    axes.plot([nbytes / 2**20 for nbytes in result["resident bytes"]])
    axes.set_xlabel("sample")
    axes.set_ylabel("resident memory of the encoder, MiB")
    axes.grid(alpha=0.3)


def verdict(result: Mapping[str, Any]) -> str:
    """Errors, wrong vectors, and more weights than the budget allows."""
    problems = []
    if result["errors"]:
        problems.append(f"{result['errors']} errors: {'; '.join(result['what was wrong'])}")
    if result["worst deviation"] > MOST_DEVIATION:
        problems.append(f"a vector deviates by {result['worst deviation']:.1e}")
    if result["most bytes held"] > result["budget bytes"]:
        problems.append(f"{result['most bytes held']} bytes of weights, where {result['budget bytes']} are allowed")
    return ", ".join(problems)


def thirds(result: Mapping[str, Any]) -> tuple[float, float]:
    """Mean resident MiB of the encoder in the first and in the last third of the samples."""
    resident = result["resident bytes"]
    count = max(1, len(resident) // 3)
    return statistics.mean(resident[:count]) / 2**20, statistics.mean(resident[-count:]) / 2**20


BENCHMARK = Benchmark(
    name="many_models",
    title="Twenty models with a memory budget for five: what 8 clients and the encoder see",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    verdict=verdict,
    options=(Option("seconds", float, ("S",), "how long clients ask"),),
)
