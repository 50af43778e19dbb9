"""Encoding on a CPU in one thread: open_clip's own modules on torch and ours, each in single precision and in bf16.

The four are compared in alternation, in one process. Vectors are compared with those of open_clip, and the order of
neighbours in bf16 with that in single precision.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.lib import models
from benchmarks.lib.bare import processes
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.photo import photo
from benchmarks.lib.queries import queries
from benchmarks.lib.vectors import deviation

BATCH = 32
NEIGHBOURS = 10
FP32, BF16 = "fp32", "bf16"
PLAIN, PLAIN_BF16 = "open_clip", "open_clip, bf16"
WORK = {"a picture of 32": BATCH, "one picture": 1, "a text of 32": BATCH, "one text": 1}
"""What is encoded, and the items of a call."""

CALLS = 6
"""Of a single item in a round."""

Encode = Callable[[], np.ndarray]
Ways = dict[str, Encode]
"""How the same items are encoded: vectors (n, dimensions) as float32."""


def measure(quick: bool) -> Result:
    """CPU milliseconds per item of each way, in alternating rounds, and how far vectors are from open_clip's:
    `{"models": {name: {"ms": {work: {way: [...]}}, "1 - cosine": {work: {way: …}}}}, "neighbours": {…}}`."""
    pictures = 200 if quick else 2000
    compared = [
        ("small CLIP", models.small_clip(), 2 if quick else 7),
        ("ViT-B-32", models.vit_b_32(), 2 if quick else 5),
    ]
    if not quick:
        compared.append(("ViT-L-14", models.vit_l_14(), 3))
    measured = {}
    for name, checkpoint, rounds in compared:
        with processes(1) as one:
            measured[name] = one.submit(_compared, checkpoint, rounds).result()
    with processes(1) as one:
        neighbours = one.submit(_neighbours, models.vit_b_32(), pictures).result()
    return {"models": measured, "neighbours": neighbours}


def rows(result: Mapping[str, Any]) -> Table:
    """Median CPU milliseconds, how many times quicker than open_clip, and the distance of vectors."""
    table = [["model", "work", "way", "CPU ms", "open_clip's / this", "1 - cosine"]]
    for model, measured in result["models"].items():
        for work, ways in measured["ms"].items():
            for way, runs in ways.items():
                row = [model, work, way, f"{statistics.median(runs):.2f}"]
                if way == PLAIN:
                    table.append([*row, "", ""])
                    continue
                ratio = statistics.median(_ratios(ways, way))
                table.append([*row, f"{ratio:.2f}", f"{measured['1 - cosine'][work][way]:.0e}"])
    for name, value in result["neighbours"].items():
        table.append(["ViT-B-32", name, BF16, "", "", f"{value:.4g}"])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """How many times quicker than open_clip ViT-B-32 encodes the pictures of a batch."""
    ways = result["models"]["ViT-B-32"]["ms"]["a picture of 32"]
    names = {way: f"encoding_ratio_{way.replace(', ', '_')}" for way in ways if way != PLAIN}
    return {name: _ratios(ways, way) for way, name in names.items()}


def _ratios(ways: Mapping[str, Sequence[float]], way: str) -> list[float]:
    return [theirs / mine for theirs, mine in zip(ways[PLAIN], ways[way], strict=True)]


def _compared(checkpoint: models.Checkpoint, rounds: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    ms, distances = {}, {}
    works = _works(checkpoint)
    for work, ways in works.items():
        expected = ways[PLAIN]()
        distances[work] = {way: deviation(encode(), expected) for way, encode in ways.items()}
        times = CALLS if WORK[work] == 1 else 1
        runs = [{way: _cpu_ms(encode, times) / WORK[work] for way, encode in ways.items()} for _ in range(rounds)]
        ms[work] = {way: [run[way] for run in runs] for way in ways}
    return {"ms": ms, "1 - cosine": distances}


def _works(checkpoint: models.Checkpoint) -> dict[str, Ways]:
    """The ways of each work."""
    import torch

    plain = _Plain(checkpoint)
    theirs = {PLAIN: plain, **({PLAIN_BF16: _Plain(checkpoint, BF16)} if BF16 in _precisions() else {})}
    ours = {precision: models.loaded(checkpoint, precision=precision) for precision in _precisions()}
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, *plain.size), np.uint8)
    texts = queries(BATCH)

    def ways(work: str) -> Ways:
        count = WORK[work]
        if "picture" in work:
            some = pixels[:count]
            ready = plain.normalised(torch.from_numpy(some))
            own = {name: partial(model.images, ready) for name, model in theirs.items()}
            return own | {name: partial(model.encode_images, [some]) for name, model in ours.items()}
        tokens = plain.tokenize(texts[:count])
        own = {name: partial(model.texts, tokens) for name, model in theirs.items()}
        return own | {name: partial(model.encode_texts, [tokens]) for name, model in ours.items()}

    return {work: ways(work) for work in WORK}


class _Plain:
    """A model as open_clip gives it.

    Args:
        checkpoint: on disk.
        precision: open_clip's name of the type in which it computes.
    """

    def __init__(self, checkpoint: models.Checkpoint, precision: str = FP32) -> None:
        import open_clip

        open_clip.add_model_config(models.FOLDER)
        path, architecture = str(checkpoint.path), checkpoint.architecture
        self._model = open_clip.create_model(architecture, pretrained=path, precision=precision).eval()
        self._dtype = open_clip.get_input_dtype(precision)
        self.tokenize = open_clip.get_tokenizer(checkpoint.architecture)
        self.size: tuple[int, int] = open_clip.get_model_preprocess_cfg(self._model)["size"]
        if isinstance(self.size, int):
            self.size = (self.size, self.size)

    def normalised(self, pixels: Any) -> Any:
        """uint8 (n, 3, height, width) to float32, as open_clip's transform ends."""
        from torchvision.transforms.v2.functional import normalize

        visual: Any = self._model.visual
        return normalize(pixels.float() / 255, visual.image_mean, visual.image_std)

    def images(self, ready: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            vectors: np.ndarray = self._model.encode_image(ready.to(self._dtype)).float().numpy()
        return vectors

    def texts(self, tokens: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            vectors: np.ndarray = self._model.encode_text(tokens).float().numpy()
        return vectors


def _precisions() -> list[str]:
    from embedding.models.cpu.capabilities import has_bf16

    return [FP32, BF16] if has_bf16() else [FP32]


def _neighbours(checkpoint: models.Checkpoint, count: int) -> dict[str, float]:
    """How far the order of neighbours is kept: recall of the ten nearest pictures in single precision."""
    if BF16 not in _precisions():
        return {}
    pixels = [_pixels(seed) for seed in range(count)]
    full, low = (_unit(_all(models.loaded(checkpoint, precision=one), pixels)) for one in (FP32, BF16))
    nearest = _nearest(full, full)
    distances = 1 - full @ full.T
    return {
        f"recall@{NEIGHBOURS} of {count} pictures": _recall(nearest, _nearest(low, low)),
        f"recall@{NEIGHBOURS}, queries against an index in fp32": _recall(nearest, _nearest(low, full)),
        "largest 1 - cosine to fp32": deviation(low, full),
        "median 1 - cosine between pictures": float(np.median(distances[np.triu_indices(count, 1)])),
    }


def _pixels(seed: int) -> np.ndarray:
    return np.asarray(photo(seed, 224, 224)).transpose(2, 0, 1)


def _all(model: Any, pixels: Sequence[np.ndarray]) -> np.ndarray:
    parts = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    return np.concatenate([model.encode_images([np.stack(part)]) for part in parts])


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide: np.ndarray = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


def _nearest(vectors: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Of each row, the indices of its nearest rows in an index of the same pictures, except itself."""
    similarities = vectors @ index.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1)[:, :NEIGHBOURS]


def _recall(expected: np.ndarray, given: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(expected, given, strict=True)]))


def _cpu_ms(encode: Encode, times: int) -> float:
    gc.collect()
    started = time.process_time()
    for _ in range(times):
        encode()
    return 1000 * (time.process_time() - started) / times


BENCHMARK = Benchmark(
    name="encoding",
    title="Encoding on a CPU: open_clip's modules and ours, each in fp32 and in bf16, CPU milliseconds, one thread",
    measure=measure,
    rows=rows,
    summary=summary,
    by_default=True,
)
