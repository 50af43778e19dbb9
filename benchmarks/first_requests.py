"""Is the first request slower than the tenth: after the start of a server, and after the load of a model.

    python -m benchmarks.first_requests [--starts 5] [--loads 5]

Prints the median time of each of the first ten requests over so many starts (text and one picture, each first once),
and over so many loads of the demo model and of a ViT-B-32, with their warm-up and without.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import requests
import yaml

from benchmarks.lib.models import vit_b_32
from benchmarks.lib.places import OUT, ROOT
from benchmarks.lib.process import free_port, server
from benchmarks.lib.target import Target, marqo
from embedding.registry import DEMO_MODEL, lookup

REQUESTS = 10


@contextlib.contextmanager
def started() -> Iterator[str]:
    """A server with the demo model preloaded, of which nothing has been asked yet but `GET /`: `/healthz` would do a
    part of what is to be measured."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    for deployment in config["applications"][0]["deployments"]:
        deployment.pop("autoscaling_config", None)
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    path = OUT / "configs" / f"{port}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    with server("first", [sys.executable, "-m", "operations.launch", str(path)], f"{url}/", ready_word="ready: "):
        yield url


def picture() -> str:
    """A data URI: no picture host takes part."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def ask(target: Target, content: str) -> None:
    """One request of one content."""
    reply = requests.post(target.url, data=target.pack([content]), headers=dict(target.headers), timeout=120)
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


def after_starts(count: int) -> dict[str, list[list[float]]]:
    """Every other server is asked for a picture first."""
    properties = lookup(DEMO_MODEL)
    assert properties is not None
    found: dict[str, list[list[float]]] = {"text, first of all": [], "picture, first of all": []}
    found |= {"text, after pictures": [], "picture, after texts": []}
    for number in range(count):
        for first in ("text", "picture"):
            with started() as url:
                text = marqo(url, properties, "language", search=True)
                image = marqo(url, properties)
                work = {"text": lambda t=text: ask(t, "a red circle"), "picture": lambda t=image: ask(t, picture())}
                second = "picture" if first == "text" else "text"
                found[f"{first}, first of all"].append(timed(work[first]))
                found[f"{second}, after {first}s"].append(timed(work[second]))
                print(f"start {number}: {first} first, {found[f'{first}, first of all'][-1][0]:.0f} ms", flush=True)
    return found


def after_loads(count: int, name: str, properties: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Of the library alone: no server takes part."""
    import torch

    from embedding.models import loader
    from embedding.models.spec import ModelSpec
    from embedding.protocol import ModelConfig

    spec = ModelSpec.from_config(ModelConfig(model_name=name, model_properties=dict(properties)))
    found: dict[str, list[list[float]]] = {}
    for _ in range(count):
        for warm in (True, False):
            skipped = contextlib.nullcontext() if warm else mock.patch.object(loader, "_warm_up")
            with skipped:
                model = loader.load_model(spec, torch.device("cpu"))
            assert model.info.image is not None
            pixels = np.zeros((1, 3, *model.info.image.size), np.uint8)
            lanes: dict[str, Callable[[], object]] = {
                "text": lambda m=model: m.encode_texts([m.tokenize(["a red circle"])]),  # type: ignore[misc]
                "picture": lambda m=model, p=pixels: m.encode_images([p]),  # type: ignore[misc]
            }
            for lane, work in lanes.items():
                key = f"{name}, {lane}, {'warmed up' if warm else 'not warmed up'}"
                found.setdefault(key, []).append(timed(work))
    return found


def main() -> int:
    """Prints one line for each kind of request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--loads", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    if given.loads:
        demo = lookup(DEMO_MODEL)
        assert demo is not None
        found |= after_loads(given.loads, DEMO_MODEL, demo)
        checkpoint = vit_b_32()
        assert Path(checkpoint.path).is_file()
        found |= after_loads(given.loads, "ViT-B-32", checkpoint.properties)
    if given.starts:
        found |= after_starts(given.starts)
    print(f"{'median ms of request':44}" + "".join(f"{n:8}" for n in range(1, REQUESTS + 1)))
    for kind, rounds in found.items():
        print(f"{kind:44}" + "".join(f"{statistics.median(times):8.1f}" for times in zip(*rounds, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
