"""Sending one picture to a server and receiving its vector: as a URL, or as a preprocessed float32 tensor.

By URL the cost includes downloading, decoding and resizing. The tensors are made before the measurement.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.cpu import CpuMeter
from benchmarks.lib.load import Conversation
from benchmarks.lib.process import free_port, server
from benchmarks.lib.server import graph
from benchmarks.lib.target import Items, Target, json_target, marqo
from benchmarks.lib.web import web

BATCHES = (1, 8, 32, 128)
WAYS = ("URL", "tensor, MessagePack", "tensor, JSON")
RATIO_AT = 32
"""The batch size of the figures in the summary."""
BUSY_S = 1.5
"""Seconds for which each measurement repeats its request: CPU time is counted in ticks of 10 ms."""


def measure(quick: bool) -> Result:
    """For each way and batch size: milliseconds, CPU milliseconds and bytes, all per picture, of each round."""
    rounds, batches = (1, BATCHES[:3]) if quick else (3, BATCHES)
    checkpoint, paths = models.small_clip(), pictures.normal()
    paths = (paths * 2)[: max(batches)]
    tensors = pictures.preprocessed(paths)
    measured = []
    with web(paths) as urls, graph() as ours, _tensor_server(checkpoint) as (tensor_url, pid):
        ways: dict[str, tuple[Target, Items, Callable[[], CpuMeter]]] = {
            "URL": (marqo(ours.url, checkpoint.properties), urls, ours.meter),
            "tensor, MessagePack": (_msgpack_target(tensor_url), tensors, lambda: CpuMeter(pid)),
            "tensor, JSON": (_json_target(tensor_url), tensors, lambda: CpuMeter(pid)),
        }
        for _, batch, (name, (target, items, meter)) in itertools.product(range(rounds), batches, ways.items()):
            seconds = 0.0 if batch == max(BATCHES) and name == "tensor, JSON" else BUSY_S / (2 if quick else 1)
            measured.append({"way": name, "batch": batch, **_cost(target, items[:batch], meter(), seconds)})
    return {"measured": measured, "picture bytes": statistics.mean(path.stat().st_size for path in paths)}


def rows(result: Mapping[str, Any]) -> Table:
    """Bytes, CPU time of both sides and time per picture, by way and batch size."""
    table = [["way", "batch", "KiB, client and back", "client CPU ms", "server CPU ms", "ms per picture"]]
    for way in WAYS:
        for batch in _batches(result):
            median = {key: _median(result, way, batch, key) for key in ("bytes", "client", "server", "ms")}
            sent = f"{median['bytes'] / 1024:.1f}"
            table.append([way, str(batch), sent, *(f"{median[key]:.2f}" for key in ("client", "server", "ms"))])
    table.append([f"(the server downloads the picture itself: {result['picture bytes'] / 1024:.1f} KiB)", *[""] * 5])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """CPU time of both sides with tensors over that with URLs, for batches of 32."""

    def totals(way: str) -> list[float]:
        chosen = [one for one in result["measured"] if (one["way"], one["batch"]) == (way, RATIO_AT)]
        return [one["client"] + one["server"] for one in chosen]

    url = totals("URL")
    return {
        "transport_ratio_tensor_json": [t / u for t, u in zip(totals("tensor, JSON"), url, strict=True)],
        "transport_ratio_tensor_msgpack": [t / u for t, u in zip(totals("tensor, MessagePack"), url, strict=True)],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """CPU time of both sides by batch size."""
    batches = _batches(result)
    for way in WAYS:
        totals = [_median(result, way, batch, "client") + _median(result, way, batch, "server") for batch in batches]
        axes.plot(range(len(batches)), totals, "o-", label=way)
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set_yscale("log")
    axes.set_xlabel("pictures in one request")
    axes.set_ylabel("CPU ms per picture, client and server")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _cost(target: Target, items: Items, meter: CpuMeter, seconds: float) -> dict[str, float]:
    """Per picture: milliseconds, CPU milliseconds of both sides, bytes of request and reply. One client asks for
    `seconds`, and once at least."""
    with Conversation(target) as conversation:
        if seconds:
            conversation.ask(items)
        exchanges, sent = 0, 0
        meter.lap()
        started, client = time.perf_counter(), time.process_time()
        while not exchanges or time.perf_counter() - started < seconds:
            sent += conversation.ask(items)
            exchanges += 1
        elapsed, client = time.perf_counter() - started, time.process_time() - client
        pictures_done = exchanges * len(items)
        return {
            "ms": 1000 * elapsed / pictures_done,
            "client": 1000 * client / pictures_done,
            "server": 1000 * sum(meter.lap().values()) / pictures_done,
            "bytes": sent / pictures_done,
        }


@contextlib.contextmanager
def _tensor_server(checkpoint: models.Checkpoint) -> Iterator[tuple[str, int]]:
    """Runs benchmarks/lib/tensor_server.py while the context lasts; yields its URL and process id."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "benchmarks.lib.tensor_server", checkpoint.architecture, str(port)]
    with server("tensors", command, f"{url}/health") as pid:
        yield url, pid


def _json_target(url: str) -> Target:
    base = json_target(f"{url}/json", {}, "pixels", lambda reply: reply)
    return Target(base.url, lambda pixels: base.pack(np.asarray(pixels).tolist()), base.unpack)


def _msgpack_target(url: str) -> Target:
    def unpack(reply: bytes) -> np.ndarray:
        rows: np.ndarray = msgpack.unpackb(reply, object_hook=msgpack_numpy.decode)
        return rows

    def pack(pixels: Any) -> bytes:
        body: bytes = msgpack.packb(pixels, default=msgpack_numpy.encode)
        return body

    return Target(f"{url}/msgpack", pack, unpack, {"Content-Type": "application/msgpack"})


def _batches(result: Mapping[str, Any]) -> list[int]:
    return sorted({one["batch"] for one in result["measured"]})


def _median(result: Mapping[str, Any], way: str, batch: int, key: str) -> float:
    chosen = [one[key] for one in result["measured"] if (one["way"], one["batch"]) == (way, batch)]
    return float(statistics.median(chosen))


BENCHMARK = Benchmark(
    name="transport",
    title="Transport: what it costs to hand one picture over and get its vector back",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    by_default=True,
)
