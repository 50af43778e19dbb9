"""The stages of the work without a server around them, in one thread: CPU time per picture or text."""

from __future__ import annotations

import asyncio
import contextlib
import functools
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
from benchmarks.lib.queries import queries
from operations.environment import SERVE_ENVIRONMENT

BATCH = 32
AT_A_TIME = 16
"""Downloads."""
WARM_UP_TEXTS = 20
PIPELINE = ("fetch", "preprocess", "encode image")
"""The stages that every picture goes through."""

Stage = Callable[[], int]
"""Does the work of one stage for several items, and returns how many they were."""


def processes(count: int) -> ProcessPoolExecutor:
    """Fresh processes, which have imported nothing yet."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def bare(checkpoint: models.Checkpoint, urls: Sequence[str], paths: Sequence[Path], seconds: float) -> dict[str, float]:
    """CPU milliseconds per picture of each stage of `PIPELINE`, in one process with one thread."""
    with processes(1) as one:
        return one.submit(_bare, checkpoint, urls, paths, seconds).result()


def bare_on_all_cores(
    checkpoint: models.Checkpoint, urls: Sequence[str], paths: Sequence[Path], seconds: float
) -> dict[str, float]:
    """The same with one process on every core at a time: cores share caches, memory and often their clock."""
    cores = os.cpu_count() or 1
    with processes(cores) as all_cores:
        jobs = [all_cores.submit(_bare, checkpoint, urls, paths, seconds) for _ in range(cores)]
        results = [job.result() for job in jobs]
    return {stage: statistics.mean(result[stage] for result in results) for stage in results[0]}


@contextlib.contextmanager
def computing_text(checkpoint: models.Checkpoint) -> Iterator[Callable[[int, float], list[float]]]:
    """What an encoder computes for a search, in a process and with threads as an encoder has them, without a server.

    Args:
        checkpoint: the model.

    Yields:
        A function that tokenises and encodes texts, one after the other, and returns the milliseconds of each. Its
        arguments: how many texts, and seconds of sleep after each. A core that has slept starts with cold caches.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _set_environment, (SERVE_ENVIRONMENT,)) as one:
        compute = functools.partial(_computing_text, checkpoint)
        one.submit(compute, WARM_UP_TEXTS, 0.0).result()
        yield lambda count, pause_s: one.submit(compute, count, pause_s).result()


def cpu_ms(stage: Stage) -> float:
    """CPU milliseconds of this process per item of one call."""
    started = time.process_time()
    items = stage()
    return 1000 * (time.process_time() - started) / items


@contextlib.contextmanager
def stages(
    checkpoint: models.Checkpoint, urls: Sequence[str], normal: Sequence[Path], large: Sequence[Path]
) -> Iterator[dict[str, Stage]]:
    """Every stage by name, ready to be called while the context lasts.

    Args:
        checkpoint: the model.
        urls: pictures to download.
        normal: pictures to decode, of the size of pictures on the web.
        large: pictures of 12 megapixels to decode.
    """
    import numpy as np
    import torch

    from embedding.image.pixels import ImageLimits, preprocess

    torch.set_num_threads(1)
    model = models.loaded(checkpoint)
    spec = model.info.image
    files, large_files = pictures.file_bytes(normal), pictures.file_bytes(large)
    batch = np.stack([preprocess(data, spec, "") for data in (files * BATCH)[:BATCH]])
    texts = queries(BATCH)
    tokens = [model.tokenize([text]) for text in texts]

    fast_limits = ImageLimits(jpeg_scaling="fast")

    def ours(data: bytes) -> None:
        preprocess(data, spec, "")

    def fast(data: bytes) -> None:
        preprocess(data, spec, "", fast_limits)

    reference = _reference(spec.size[0])
    with _fetching(urls) as fetch:
        yield {
            "fetch": fetch,
            "preprocess": _each(ours, files),
            "preprocess, reference": _each(reference, files),
            "preprocess 12 MP": _each(ours, large_files),
            "preprocess 12 MP, fast": _each(fast, large_files),
            "preprocess 12 MP, reference": _each(reference, large_files),
            "encode image": _repeated(lambda: model.encode_images([batch]), BATCH),
            "encode one image": _each(lambda picture: model.encode_images([picture]), np.split(batch, BATCH)[:8]),
            "tokenise": _each(lambda text: model.tokenize([text]), texts),
            "encode text": _repeated(lambda: model.encode_texts(tokens), BATCH),
            "encode one text": _each(lambda token: model.encode_texts([token]), tokens[:8]),
        }


def _bare(
    checkpoint: models.Checkpoint, urls: Sequence[str], paths: Sequence[Path], seconds: float
) -> dict[str, float]:
    runs: dict[str, list[float]] = {name: [] for name in PIPELINE}
    with stages(checkpoint, urls, paths, []) as ready:
        for name in PIPELINE:
            ready[name]()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, values in runs.items():
                values.append(cpu_ms(ready[name]))
    return {name: statistics.median(values) for name, values in runs.items()}


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


@functools.cache
def _searching(checkpoint: models.Checkpoint) -> tuple[Any, Any]:
    from deployments.encoder.cores import Cores

    return models.loaded(checkpoint), Cores(os.cpu_count() or 1)


def _computing_text(checkpoint: models.Checkpoint, count: int, pause_s: float) -> list[float]:
    model, cores = _searching(checkpoint)
    milliseconds = []
    for text in queries(count):
        started = time.perf_counter()
        tokens = model.tokenize([text])
        with cores.taken(urgent=True):
            model.encode_texts([tokens])
        milliseconds.append(1000 * (time.perf_counter() - started))
        time.sleep(pause_s)
    return milliseconds


def _each(work: Callable[[Any], Any], items: Sequence[Any]) -> Stage:
    def stage() -> int:
        for item in items:
            work(item)
        return len(items)

    return stage


def _repeated(work: Callable[[], Any], items: int, times: int = 4) -> Stage:
    def stage() -> int:
        for _ in range(times):
            work()
        return items * times

    return stage


def _reference(size: int) -> Callable[[bytes], Any]:
    from PIL import Image

    transform = pictures.open_clip_transform(size)
    return lambda data: transform(Image.open(BytesIO(data)))


@contextlib.contextmanager
def _fetching(urls: Sequence[str]) -> Iterator[Stage]:
    """Downloads of all pictures, `AT_A_TIME` together."""
    from embedding.fetch.fetcher import Fetcher, FetchOptions, FetchSettings

    loop = asyncio.new_event_loop()
    fetcher = Fetcher(FetchSettings(allowed_networks="127.0.0.0/8"))

    async def fetch_all() -> None:
        for start in range(0, len(urls), AT_A_TIME):
            chunk = urls[start : start + AT_A_TIME]
            await asyncio.gather(*(fetcher.fetch(url, FetchOptions()) for url in chunk))

    def stage() -> int:
        loop.run_until_complete(fetch_all())
        return len(urls)

    yield stage
    loop.run_until_complete(fetcher.close())
    loop.close()
