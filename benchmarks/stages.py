"""The bare stages of the work, in one process and one thread: CPU per picture or text, ours and the reference's.

What they add up to is the least that serving can cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.web import web

NAME = "stages"
TITLE = "Bare stages: CPU milliseconds per picture or text, one thread"
QUERY = "a photo of a red bicycle leaning against a wall, number {}"
BATCH = 32
PIPELINE = ("fetch", "preprocess", "encode image")
"""What every picture goes through."""

Stage = Callable[[], int]
"""Does some work and tells for how many items."""


def measure(quick: bool) -> dict[str, Any]:
    """CPU milliseconds per item of each stage, in alternating rounds: `{"stages": {name: [ms, ...]}}`."""
    rounds = 2 if quick else 5
    checkpoint = models.small_clip()
    normal, large = pictures.normal(), pictures.large()
    with web(normal) as urls, _processes(1) as one:
        measured = one.submit(_rounds, checkpoint, urls, normal[: 16 if quick else None], large, rounds).result()
    return {"stages": measured, "pictures": _sizes(normal), "large pictures": _sizes(large)}


def bare(checkpoint: models.Checkpoint, urls: Sequence[str], paths: Sequence[Path], seconds: float) -> dict[str, float]:
    """CPU milliseconds per picture of the pipeline's stages, one process with one thread on the machine."""
    with _processes(1) as one:
        return one.submit(_bare, checkpoint, urls, paths, seconds).result()


def bare_on_all_cores(
    checkpoint: models.Checkpoint, urls: Sequence[str], paths: Sequence[Path], seconds: float
) -> dict[str, float]:
    """The same with a process on every core at a time: cores share caches, memory and often their clock."""
    cores = os.cpu_count() or 1
    with _processes(cores) as all_cores:
        jobs = [all_cores.submit(_bare, checkpoint, urls, paths, seconds) for _ in range(cores)]
        results = [job.result() for job in jobs]
    return {stage: statistics.mean(result[stage] for result in results) for stage in results[0]}


def bare_text(checkpoint: models.Checkpoint, pause_s: float = 0.0) -> float:
    """Milliseconds that one query takes to be tokenised and encoded, with nothing around it.

    Args:
        checkpoint: the model.
        pause_s: after each query: a core that has slept starts with cold caches.
    """
    with _processes(1) as one:
        return one.submit(_bare_text, checkpoint, pause_s).result()


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """A table: header first."""
    table = [["stage", "CPU ms", "runs"]]
    for stage, runs in result["stages"].items():
        table.append([stage, f"{statistics.median(runs):.2f}", str(len(runs))])
    return table


def summary(result: Mapping[str, Any]) -> dict[str, list[float]]:
    """Figures of the summary: all runs of each."""
    stages = result["stages"]

    def ratio(reference: str, ours: str) -> list[float]:
        return [theirs / mine for theirs, mine in zip(stages[reference], stages[ours], strict=True)]

    return {
        "preprocess_ratio": ratio("preprocess, reference", "preprocess"),
        "preprocess_ratio_12mp": ratio("preprocess 12 MP, reference", "preprocess 12 MP"),
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Bars, the longest on top."""
    medians = {stage: statistics.median(runs) for stage, runs in result["stages"].items()}
    names = sorted(medians, key=medians.__getitem__)
    bars = axes.barh(names, [medians[name] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xscale("log")
    axes.set_xlabel("CPU ms per item")


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def _rounds(
    checkpoint: models.Checkpoint, urls: Sequence[str], normal: Sequence[Path], large: Sequence[Path], rounds: int
) -> dict[str, list[float]]:
    with _stages(checkpoint, urls, normal, large) as stages:
        for name, stage in stages.items():
            if "12 MP" not in name:
                stage()  # caches, first allocations
        runs = [{name: _cpu_ms(stage) for name, stage in stages.items()} for _ in range(rounds)]
    return {name: [run[name] for run in runs] for name in runs[0]}


def _bare(
    checkpoint: models.Checkpoint, urls: Sequence[str], paths: Sequence[Path], seconds: float
) -> dict[str, float]:
    runs: dict[str, list[float]] = {name: [] for name in PIPELINE}
    with _stages(checkpoint, urls, paths, []) as stages:
        for name in PIPELINE:
            stages[name]()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, values in runs.items():
                values.append(_cpu_ms(stages[name]))
    return {name: statistics.median(values) for name, values in runs.items()}


def _bare_text(checkpoint: models.Checkpoint, pause_s: float) -> float:
    import torch

    torch.set_num_threads(1)
    model = models.loaded(checkpoint)
    runs = []
    for i in range(100):
        started = time.perf_counter()
        model.encode_texts([model.tokenize([QUERY.format(i)])])
        runs.append(1000 * (time.perf_counter() - started))
        time.sleep(pause_s)
    return statistics.median(runs)


def _cpu_ms(stage: Stage) -> float:
    started = time.process_time()
    items = stage()
    return 1000 * (time.process_time() - started) / items


@contextlib.contextmanager
def _stages(
    checkpoint: models.Checkpoint, urls: Sequence[str], normal: Sequence[Path], large: Sequence[Path]
) -> Iterator[dict[str, Stage]]:
    import numpy as np
    import torch

    from embedding.image.pixels import preprocess

    torch.set_num_threads(1)
    model = models.loaded(checkpoint)
    spec = model.info.image
    files, large_files = pictures.contents(normal), pictures.contents(large)
    batch = np.stack([preprocess(data, spec, "") for data in (files * BATCH)[:BATCH]])
    texts = [QUERY.format(i) for i in range(BATCH)]
    tokens = [model.tokenize([text]) for text in texts]

    def ours(data: bytes) -> None:
        preprocess(data, spec, "")

    reference = _reference(spec.size[0])
    with _fetching(urls) as fetch:
        yield {
            "fetch": fetch,
            "preprocess": _each(ours, files),
            "preprocess, reference": _each(reference, files),
            "preprocess 12 MP": _each(ours, large_files),
            "preprocess 12 MP, reference": _each(reference, large_files),
            "encode image": _once(lambda: model.encode_images([batch]), BATCH),
            "encode one image": _each(lambda picture: model.encode_images([picture]), np.split(batch, BATCH)[:8]),
            "tokenise": _each(lambda text: model.tokenize([text]), texts),
            "encode text": _once(lambda: model.encode_texts(tokens), BATCH),
            "encode one text": _each(lambda token: model.encode_texts([token]), tokens[:8]),
        }


def _each(work: Callable[[Any], Any], items: Sequence[Any]) -> Stage:
    def stage() -> int:
        for item in items:
            work(item)
        return len(items)

    return stage


def _once(work: Callable[[], Any], items: int, times: int = 4) -> Stage:
    def stage() -> int:
        for _ in range(times):
            work()
        return items * times

    return stage


def _reference(size: int) -> Callable[[bytes], Any]:
    """open_clip's own validation transform, to the float tensor that its models take."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    transform = image_transform_v2(PreprocessCfg(size=size), is_train=False)
    return lambda data: transform(Image.open(BytesIO(data)))


@contextlib.contextmanager
def _fetching(urls: Sequence[str]) -> Iterator[Stage]:
    """Downloads of all pictures, 16 at a time as in one chunk of the server."""
    from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings

    loop = asyncio.new_event_loop()
    fetcher = Fetcher(FetchSettings(allowed_networks="127.0.0.0/8"))

    async def fetch_all() -> None:
        for start in range(0, len(urls), 16):
            await asyncio.gather(*(fetcher.fetch(url, FetchOptions()) for url in urls[start : start + 16]))

    def stage() -> int:
        loop.run_until_complete(fetch_all())
        return len(urls)

    yield stage
    loop.run_until_complete(fetcher.close())
    loop.close()


def _sizes(paths: Sequence[Path]) -> dict[str, float]:
    sizes = [path.stat().st_size for path in paths]
    return {"count": len(sizes), "mean bytes": statistics.mean(sizes)}
