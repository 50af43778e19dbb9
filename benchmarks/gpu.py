"""A GPU: parity of half precision, and pictures per second of each layer.

The layers: the card's own arithmetic, the bare model, the encoder deployment with prepared chunks, and the whole graph
over HTTP beside the plain server of benchmarks/peers. Needs a CUDA device.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.lib import models, pictures
from benchmarks.lib.bare import processes
from benchmarks.lib.benchmark import Benchmark, CannotMeasure, Figures, Result, Table
from benchmarks.lib.load import closed_loop, once
from benchmarks.lib.models import Checkpoint
from benchmarks.lib.server import Shape, graph
from benchmarks.lib.target import marqo
from benchmarks.lib.web import web
from benchmarks.peers.servers import plain

BATCHES = (1, 8, 32, 64, 128, 256)
CHUNK = 16
"""Pictures in one call of the encoder."""
MATMUL = 8192
"""Rows and columns of the matrices that the card multiplies."""
DTYPES = ("float16", "bfloat16")


def prepare() -> None:
    """Raises CannotMeasure where there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise CannotMeasure("no CUDA device here: nothing to measure")


def measure(quick: bool) -> Result:
    """Everything by architecture. Each part has a process of its own, so the card's memory is free for the next."""
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


def rows(result: Mapping[str, Any]) -> Table:
    """A column for each architecture."""
    models_by_name = result["models"]
    every = list(models_by_name.values())
    table = [["", *models_by_name]]
    for dtype in DTYPES:
        cosines = [f"{model['parity'][dtype]:.6f}" for model in every]
        table.append([f"least cosine of {dtype} to float32", *cosines])
    table += [
        [f"raw, batch {batch}, pictures/s", *(f"{model['raw'][str(batch)]:.0f}" for model in every)]
        for batch in BATCHES
    ]
    table.append(["raw / matmul ceiling", *(f"{_ceiling(result, model):.2f}" for model in every)])
    table.append(["encoder deployment, pictures/s", *(f"{model['deployment']:.0f}" for model in every)])
    table.append(["deployment / raw", *(f"{model['deployment'] / _best(model):.2f}" for model in every)])
    for way in ("ours", "plain"):
        rates = [f"{model['end to end'][way]:.0f}" if "end to end" in model else "" for model in every]
        table.append([f"end to end, {way}, pictures/s", *rates])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """Of ViT-B-32."""
    model = result["models"]["ViT-B-32"]
    return {
        "gpu_parity_float16": [model["parity"]["float16"]],
        "gpu_deployment_over_raw": [model["deployment"] / _best(model)],
        "gpu_vs_plain": [model["end to end"]["ours"] / model["end to end"]["plain"]],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Speed of the bare model by batch size; the deployment's as a horizontal line."""
    for name, model in result["models"].items():
        (curve,) = axes.plot(BATCHES, [model["raw"][str(batch)] for batch in BATCHES], "o-", label=f"{name}, raw")
        axes.axhline(model["deployment"], color=curve.get_color(), linestyle="--", label=f"{name}, deployment")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("batch")
    axes.set_ylabel("pictures per second")
    axes.legend()


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    with processes(1) as one:
        return one.submit(work, *arguments).result()


def _card() -> str:
    import torch

    return torch.cuda.get_device_name(0)


def _matmul() -> float:
    """TFLOP per second of the card's float16 matrix product: the ceiling of what a model can reach."""
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

    batch = torch.from_numpy(pictures.preprocessed(pictures.normal())).cuda()
    module = _module(checkpoint)
    with torch.inference_mode():
        exact = module.encode_image(batch, normalize=True)
        cosines = {}
        for name in DTYPES:
            dtype = getattr(torch, name)
            vectors = _module(checkpoint).to(dtype).encode_image(batch.to(dtype)).float()
            cosines[name] = float(torch.nn.functional.cosine_similarity(vectors, exact).min())
    return cosines


def _raw(checkpoint: Checkpoint, seconds: float) -> dict[str, float]:
    """Pictures per second of `encode_image` in float16 by batch size, with pixels that are on the card already."""
    import torch

    module = _module(checkpoint).half()
    rates = {}
    with torch.inference_mode():
        for batch in BATCHES:
            pixels = torch.randn(batch, 3, 224, 224, dtype=torch.float16, device="cuda")
            rates[str(batch)] = batch / _seconds(partial(module.encode_image, pixels), seconds)
    return rates


def _seconds(work: Callable[[], Any], seconds: float) -> float:
    """Seconds of one call, where calls are queued so that the card never waits."""
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
    """Pictures per second of the encoder deployment, called by handle with a chunk in the object store."""
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
        encoder: Any = Encoder
        deployment = encoder.options(ray_actor_options=options, user_config=user_config)
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
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _end_to_end(checkpoint: Checkpoint, seconds: float) -> dict[str, float]:
    """Pictures per second over HTTP with all cores: our server's, and the plain server's on the same card."""
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
    """GFLOP of the matrix products of one picture's forward pass."""
    width, depth, patch = {"ViT-B-32": (768, 12, 32), "ViT-L-14": (1024, 24, 14)}[architecture]
    tokens = (224 // patch) ** 2 + 1
    block = 24 * width**2 * tokens + 4 * tokens**2 * width
    return (depth * block + 2 * 3 * patch**2 * width * tokens) / 1e9


def _best(model: Mapping[str, Any]) -> float:
    return float(max(model["raw"].values()))


def _ceiling(result: Mapping[str, Any], model: Mapping[str, Any]) -> float:
    """The bare model's best speed over what the card's arithmetic allows."""
    return float(_best(model) * model["GFLOP per picture"] / 1000 / result["matmul TFLOP/s"])


BENCHMARK = Benchmark(
    name="gpu",
    title="GPU: parity of half precision, and pictures per second of each layer",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    prepare=prepare,
)
