"""Samples of a running server: memory, descriptors and threads of its processes, and objects in Ray's store."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil

from benchmarks.lib.cluster import attached
from benchmarks.lib.cpu import ray_group
from benchmarks.lib.process import descendants

MEASURES = ("rss", "anonymous", "descriptors", "threads")
"""Of processes. `rss` is resident bytes. `anonymous` is those of them that are neither files nor shared memory, so
without Ray's object store."""
Sample = dict[str, Any]
"""`{"at": time.monotonic(), "groups": {group: {measure: value}}, "objects": number, "object bytes": number, "busy": CPU
seconds of the machine so far, "stolen": CPU seconds so far that a virtual machine's host gave to others}`."""


@contextlib.contextmanager
def watching(pid: int, every_s: float) -> Iterator[list[Sample]]:
    """Samples a server and all of its descendants while the context lasts. The list that it yields grows meanwhile.

    Args:
        pid: the server's first process.
        every_s: seconds from one sample to the next.
    """
    with attached(pid):
        import ray

        nodes = [(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes()]  # type: ignore[no-untyped-call]
        with sampling(lambda: {"groups": held(pid), **_store(nodes), **_machine()}, every_s) as samples:
            yield samples


@contextlib.contextmanager
def sampling(sample: Callable[[], Sample], every_s: float) -> Iterator[list[Sample]]:
    """Takes samples from a thread while the context lasts. The list that it yields grows meanwhile.

    Args:
        sample: takes one. Its time is added as `at`.
        every_s: seconds from one sample to the next.
    """
    samples: list[Sample] = []
    stop = threading.Event()
    started = time.monotonic()

    def watch() -> None:
        while not stop.wait(max(0.0, started + len(samples) * every_s - time.monotonic())):
            samples.append({"at": time.monotonic(), **sample()})

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def held(pid: int) -> dict[str, dict[str, int]]:
    """What the processes of each group hold now. Groups are those of `kind`."""
    groups: dict[str, dict[str, int]] = {}
    for process in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            memory = process.memory_info()
            values = (memory.rss, memory.rss - memory.shared, process.num_fds(), process.num_threads())
            group = groups.setdefault(kind(process), dict.fromkeys(("processes", *MEASURES), 0))
            group["processes"] += 1
            for measure, value in zip(MEASURES, values, strict=True):
                group[measure] += value
    return groups


def total(sample: Mapping[str, Any], measure: str) -> int:
    """A measure over all groups."""
    return int(sum(group[measure] for group in sample["groups"].values()))


def kind(process: psutil.Process) -> str:
    """The group of a process: `raylet`, `gcs_server`, `haproxy`, or what `ray_group` says."""
    name = process.name()
    return name if name in ("raylet", "gcs_server", "haproxy") else ray_group(process)


def _store(nodes: list[tuple[str, int]]) -> dict[str, int]:
    from deployments.ray_internals import store_stats

    stats = [store_stats(*node) for node in nodes]
    return {
        "objects": sum(one.num_local_objects for one in stats),
        "object bytes": sum(one.object_store_bytes_used for one in stats),
    }


def _machine() -> dict[str, float]:
    times = psutil.cpu_times()
    return {"busy": times.user + times.nice + times.system + times.irq + times.softirq, "stolen": times.steal}
