"""`python -m benchmarks.gpu [--quick]`: what a CUDA card makes of it; says so and ends where there is none.

Parity of half precision, then pictures per second of each layer: the card's own arithmetic, the bare model, the encoder
deployment fed with ready chunks, and the whole graph over HTTP beside the plain server.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.lib import models, pictures
from benchmarks.lib.load import closed_loop, once
from benchmarks.lib.models import Checkpoint
from benchmarks.lib.server import Shape, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.web import web
from benchmarks.peers.servers import plain

NAME = "gpu"
TITLE = "GPU: parity of half precision, and pictures per second of each layer"
BATCHES = (1, 8, 32, 64, 128, 256)
CHUNK = 16
MATMUL = 8192


def measure(quick: bool) -> dict[str, Any]:
    """Everything by architecture; each part in a process of its own, so that the card is free for the next."""
    checkpoints = {"ViT-B-32": models.vit_b_32()} | ({} if quick else {"ViT-L-14": models.vit_l_14()})
    result: dict[str, Any] = {"card": _alone(_card), "matmul TFLOP/s": _alone(_matmul), "models": {}}
    for name, checkpoint in checkpoints.items():
        result["models"][name] = {
            "parity": _alone(_parity, checkpoint),
            "GFLOP per picture": _gflop(name),
            "raw": _alone(_raw, checkpoint, 1.0 if quick else 3.0),
            "deployment": _alone(_deployment, checkpoint, 5.0 if quick else 15.0),
        }
    base = result["models"]["ViT-B-32"]
    base["end to end"] = _end_to_end(checkpoints["ViT-B-32"], 5.0 if quick else 15.0)
    return result


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A table: header first."""
    table = [["", *result["models"]]]

    def line(label: str, value: Callable[[Mapping[str, Any]], str]) -> None:
        table.append([label, *(value(model) for model in result["models"].values())])

    for dtype in ("float16", "bfloat16"):
        line(f"least cosine of {dtype} to float32", lambda model, dtype=dtype: f"{model['parity'][dtype]:.6f}")
    for batch in BATCHES:
        line(f"raw, batch {batch}, pictures/s", lambda model, batch=batch: f"{model['raw'][str(batch)]:.0f}")
    line("raw / matmul ceiling", lambda model: f"{_ceiling(result, model):.2f}")
    line("encoder deployment, pictures/s", lambda model: f"{model['deployment']:.0f}")
    line("deployment / raw", lambda model: f"{model['deployment'] / _best(model):.2f}")
    for key in ("ours", "plain"):
        line(
            f"end to end, {key}, pictures/s",
            lambda model, key=key: f"{model['end to end'][key]:.0f}" if "end to end" in model else "",
        )
    return table


def summary(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Figures of the summary."""
    model = result["models"]["ViT-B-32"]
    return {
        "gpu_parity_float16": [model["parity"]["float16"]],
        "gpu_deployment_over_raw": [model["deployment"] / _best(model)],
        "gpu_vs_plain": [model["end to end"]["ours"] / model["end to end"]["plain"]],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Raw speed by batch size, the deployment as a line."""
    for name, model in result["models"].items():
        (curve,) = axes.plot(BATCHES, [model["raw"][str(batch)] for batch in BATCHES], "o-", label=f"{name}, raw")
        axes.axhline(model["deployment"], color=curve.get_color(), linestyle="--", label=f"{name}, deployment")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("batch")
    axes.set_ylabel("pictures per second")
    axes.legend()


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(work, *arguments).result()


def _card() -> str:
    import torch

    return torch.cuda.get_device_name(0)


def _matmul() -> float:
    """The card's measured ceiling: float16, TFLOP per second."""
    import torch

    a = torch.randn(MATMUL, MATMUL, dtype=torch.float16, device="cuda")
    return 2 * MATMUL**3 / _seconds(lambda: a @ a, 2.0) / 1e12


def _module(checkpoint: Checkpoint) -> Any:
    import open_clip

    open_clip.add_model_config(models.FOLDER)
    module = open_clip.create_model(checkpoint.architecture, pretrained=str(checkpoint.path), device="cuda")
    return module.eval()


def _parity(checkpoint: Checkpoint) -> dict[str, float]:
    """The least cosine between a picture's vector in half and in single precision."""
    import torch

    from benchmarks.transport import preprocessed

    batch = torch.from_numpy(preprocessed(pictures.normal())).cuda()
    module = _module(checkpoint)
    with torch.inference_mode():
        exact = module.encode_image(batch, normalize=True)
        cosines = {}
        for dtype in (torch.float16, torch.bfloat16):
            rows = _module(checkpoint).to(dtype).encode_image(batch.to(dtype)).float()
            cosine = torch.nn.functional.cosine_similarity(rows, exact)
            cosines[str(dtype).removeprefix("torch.")] = float(cosine.min())
    return cosines


def _raw(checkpoint: Checkpoint, seconds: float) -> dict[str, float]:
    """Pictures per second of `encode_image` in float16, by batch size: pixels lie ready on the card."""
    import torch

    module = _module(checkpoint).half()
    rates = {}
    with torch.inference_mode():
        for batch in BATCHES:
            pixels = torch.randn(batch, 3, 224, 224, dtype=torch.float16, device="cuda")
            rates[str(batch)] = batch / _seconds(lambda pixels=pixels: module.encode_image(pixels), seconds)
    return rates


def _seconds(work: Callable[[], Any], seconds: float) -> float:
    """Of one call, the card never waiting for the next."""
    import torch

    for _ in range(5):
        work()
    torch.cuda.synchronize()
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        calls += 10
    return (time.perf_counter() - started) / calls


def _deployment(checkpoint: Checkpoint, seconds: float) -> float:
    """Pictures per second of the encoder deployment, fed by handle with chunks that lie in the object store."""
    import ray
    from ray import serve

    from deployments.encoder.encoder import Encoder
    from deployments.encoder.settings import EncoderSettings
    from deployments.ray_internals import by_reference
    from embedding.models.spec import ModelSpec
    from embedding.protocol import ModelConfig

    ray.init(address="local", include_dashboard=False, log_to_driver=False, namespace="serve")
    try:
        settings = EncoderSettings(device="cuda", architectures=(models.FOLDER,))
        options = {"num_cpus": 1, "num_gpus": 1}
        user_config = {"max_image_batch": 256}
        deployment = Encoder.options(ray_actor_options=options, user_config=user_config, max_ongoing_requests=256)
        handle = serve.run(deployment.bind(settings), name="encoder", route_prefix=None)
        encode = by_reference(handle, method_name="encode_images")
        properties = {**checkpoint.properties, "precision": "fp16"}
        spec = ModelSpec.from_config(ModelConfig(model_name="bench", model_properties=properties))
        chunk = ray.put(np.random.default_rng(1).integers(0, 256, (CHUNK, 3, 224, 224), dtype=np.uint8))
        encode.remote(spec, chunk, True, False).result()
        waiting = [encode.remote(spec, chunk, True, False) for _ in range(64)]
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            waiting.pop(0).result()
            waiting.append(encode.remote(spec, chunk, True, False))
            done += CHUNK
        return done / (time.perf_counter() - started)
    finally:
        serve.shutdown()
        ray.shutdown()


def _end_to_end(checkpoint: Checkpoint, seconds: float) -> dict[str, float]:
    """Pictures per second over HTTP with all cores: ours, and the plain server on the same card."""
    cores = os.cpu_count() or 1
    shape = Shape(preprocessors=max(1, cores - 3), decode_threads=1, max_image_batch=256, device="cuda")
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    properties = {**checkpoint.properties, "precision": "fp16"}
    with web(pictures.normal()) as urls:
        for _ in range(2):
            with graph(shape) as running:
                target = marqo(running.url, properties)
                once(target, urls[:32])
                rates["ours"].append(closed_loop(target, urls, 2 * cores, seconds).rate)
            with plain(checkpoint, sys.executable) as peer:
                once(peer.target, urls[:32])
                rates["plain"].append(closed_loop(peer.target, urls, cores, seconds).rate)
    return {name: statistics.median(runs) for name, runs in rates.items()}


def _gflop(architecture: str) -> float:
    """Of one picture's forward pass, counting matrix products."""
    width, depth, patch = {"ViT-B-32": (768, 12, 32), "ViT-L-14": (1024, 24, 14)}[architecture]
    tokens = (224 // patch) ** 2 + 1
    block = 24 * width**2 * tokens + 4 * tokens**2 * width
    return (depth * block + 2 * 3 * patch**2 * width * tokens) / 1e9


def _best(model: Mapping[str, Any]) -> float:
    return max(model["raw"].values())


def _ceiling(result: Mapping[str, Any], model: Mapping[str, Any]) -> float:
    return _best(model) * model["GFLOP per picture"] / 1000 / result["matmul TFLOP/s"]


def main() -> None:
    """Measures if there is a card."""
    import torch

    from benchmarks.run import run

    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
        return
    run([sys.modules[__name__]])


if __name__ == "__main__":
    main()
