"""The first ten requests after the start of a server, and after the load of a model: is the first one slower?

After a start: texts and single pictures, each of them first at every other start. After a load, without a server: the
demo model and a ViT-B-32, with their warm-up and without it.
"""

from __future__ import annotations

import base64
import contextlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import Any
from unittest import mock

import numpy as np
import requests

from benchmarks.lib.benchmark import Benchmark, Figures, Option, Result, Table
from benchmarks.lib.models import FOLDER, vit_b_32
from benchmarks.lib.process import free_port, server
from benchmarks.lib.server import demo_config, written
from benchmarks.lib.target import Target, marqo
from embedding.registry import DEMO_MODEL, lookup

REQUESTS = 10
ROUNDS = 5
TEXT = "a red circle"
Rounds = dict[str, list[list[float]]]
"""Milliseconds of each of the first requests, by kind of request and round."""


def measure(quick: bool, starts: int | None = None, loads: int | None = None) -> Result:
    """Times of the first requests after so many loads of each model, and after so many starts of each order."""
    rounds = 1 if quick else ROUNDS
    demo = lookup(DEMO_MODEL)
    assert demo is not None
    found: Rounds = {}
    if loads := rounds if loads is None else loads:
        found |= after_loads(loads, DEMO_MODEL, demo)
        found |= after_loads(loads, "ViT-B-32", vit_b_32().properties)
    found |= after_starts(rounds if starts is None else starts, demo)
    return {"ms": found}


def after_loads(count: int, name: str, properties: Mapping[str, Any]) -> Rounds:
    """Requests to a model in this process, without a server."""
    import torch

    from embedding.models import loader
    from embedding.models.files.options import LoadOptions
    from embedding.models.spec import ModelSpec
    from embedding.protocol import ModelConfig

    spec = ModelSpec.from_config(ModelConfig(model_name=name, model_properties=dict(properties)))
    options = LoadOptions(model_sources=("registry", "path"), path_roots=(FOLDER,))
    found: Rounds = {}
    for _ in range(count):
        for warm in (True, False):
            with contextlib.nullcontext() if warm else mock.patch.object(loader, "_warm_up"):
                model: Any = loader.load_model(spec, torch.device("cpu"), options)
            pixels = np.zeros((1, 3, *model.info.image.size), np.uint8)
            lanes = {"text": partial(_encode_text, model), "picture": partial(model.encode_images, [pixels])}
            for lane, work in lanes.items():
                key = f"{name}, {lane}, {'warmed up' if warm else 'not warmed up'}"
                found.setdefault(key, []).append(timed(work))
    return found


def _encode_text(model: Any) -> object:
    return model.encode_texts([model.tokenize([TEXT])])


def after_starts(count: int, properties: Mapping[str, Any]) -> Rounds:
    """Requests to servers that were just started. Every other server is asked for a picture first."""
    found: Rounds = {}
    for number in range(count):
        for first, second in (("text", "picture"), ("picture", "text")):
            with started() as url:
                work = {
                    "text": partial(ask, marqo(url, properties, "language", search=True), TEXT),
                    "picture": partial(ask, marqo(url, properties), picture()),
                }
                times = timed(work[first])
                found.setdefault(f"{first}, first of all", []).append(times)
                found.setdefault(f"{second}, after {first}s", []).append(timed(work[second]))
                print(f"start {number}: {first} first, {times[0]:.0f} ms", flush=True)
    return found


@contextlib.contextmanager
def started() -> Iterator[str]:
    """A server with the demo model preloaded, which has been asked for nothing but `GET /`: `GET /healthz` would do a
    part of the work that is measured. Yields its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = demo_config(port)
    for deployment in config["applications"][0]["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    command = [sys.executable, "-m", "operations.launch", str(written(config))]
    with server("first", command, f"{url}/", ready_word="ready: "):
        yield url


def picture() -> str:
    """A picture as a data URI: no picture host takes part."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def ask(target: Target, item: str) -> None:
    """One request for one item."""
    reply = requests.post(target.url, data=target.pack([item]), headers=dict(target.headers), timeout=120)
    reply.raise_for_status()
    target.unpack(reply.content)


def timed(work: Callable[[], object]) -> list[float]:
    """Milliseconds of each of the first requests."""
    times = []
    for _ in range(REQUESTS):
        begun = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - begun))
    return times


def rows(result: Mapping[str, Any]) -> Table:
    """Median milliseconds of each request, a line for each kind."""
    table = [["median ms of request", *(str(number) for number in range(1, REQUESTS + 1))]]
    for kind, rounds in result["ms"].items():
        table.append([kind, *(f"{value:.1f}" for value in medians(rounds))])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """The first request's time over the tenth's, of each kind and round."""
    names = {kind: re.sub(r"\W+", "_", kind) for kind in result["ms"]}
    return {
        f"first_over_tenth_{names[kind]}": [times[0] / times[-1] for times in rounds]
        for kind, rounds in result["ms"].items()
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Medians of each kind."""
    for kind, rounds in result["ms"].items():
        axes.plot(range(1, REQUESTS + 1), medians(rounds), "o-", markersize=3, label=kind)
    axes.set_yscale("log")
    axes.set_xlabel("request")
    axes.set_ylabel("ms")
    axes.grid(alpha=0.3, which="both", axis="y")
    axes.legend(fontsize="x-small")


def medians(rounds: list[list[float]]) -> list[float]:
    """Of each request over all rounds."""
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


BENCHMARK = Benchmark(
    name="first_requests",
    title="The first ten requests after a start and after the load of a model, milliseconds",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    options=(
        Option("starts", int, ("N",), "starts of a server in each order"),
        Option("loads", int, ("N",), "loads of each model"),
    ),
)
