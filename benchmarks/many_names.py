"""Thousands of models, each named once: the memory that they leave in each process, and the files on the disk.

In turn: `random` models with long properties, repositories that the hub does not have, URLs of a dead host, and paths
that are refused. After each tenth of them the memory of the replicas and the time of `GET /models` are measured.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import psutil
import requests

from benchmarks.lib.benchmark import Benchmark, Figures, Option, Result, Table
from benchmarks.lib.places import OUT
from benchmarks.lib.process import free_port
from benchmarks.lib.server import demo_config
from operations.launch import running

CLIENTS = 4
MODELS, QUICK_MODELS = 20_000, 400
DEPLOYMENTS = ("Ingress", "Preprocessor", "Encoder")
MOST_GROWTH_MIB = 30.0
MOST_LISTING_S = 1.0
"""For `GET /models`."""
LONG = "x" * 90_000
CLIP = {"name": "ViT-B-32", "dimensions": 512, "type": "open_clip"}


def measure(quick: bool, models: int | None = None) -> Result:
    """What each tenth of the `models` leaves, and the files and folders in the cache of downloads at the end."""
    cache = OUT / "many_names"
    shutil.rmtree(cache, ignore_errors=True)
    config = demo_config(free_port())
    sources = ["registry", "hub", "url"]
    options = {"model_sources": sources, "cache_dir": str(cache.absolute()), "allowed_networks": "127.0.0.0/8"}
    config["applications"][0]["args"]["encoder"] |= {"models": options}
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Encoder":
            deployment["ray_actor_options"] = {"runtime_env": {"env_vars": {"HF_ENDPOINT": "http://127.0.0.1:9"}}}
    with running(config, log_to_driver=False):
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        tenths = measured(url, models or (QUICK_MODELS if quick else MODELS))
    return {"tenths": tenths, "left on the disk": left(cache)}


def measured(url: str, models: int) -> list[dict[str, Any]]:
    """Memory, statuses and the time of `GET /models` after each tenth of the models."""
    tenths = []
    with ThreadPoolExecutor(CLIENTS) as pool, requests.Session() as session:
        for tenth in range(10):
            numbers = range(tenth * models // 10, (tenth + 1) * models // 10)
            statuses = list(pool.map(lambda number: ask(session, url, number), numbers))
            started = time.monotonic()
            reply = session.get(f"{url}/models?detailed=true", timeout=60)
            tenths.append(
                {
                    "models": numbers.stop,
                    "MiB": {name: nbytes / 2**20 for name, nbytes in resident().items()},
                    "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
                    "listing": {
                        "status": reply.status_code,
                        "bytes": len(reply.content),
                        "seconds": time.monotonic() - started,
                    },
                }
            )
            print(json.dumps(tenths[-1]), flush=True)
    return tenths


def ask(session: requests.Session, url: str, number: int) -> int:
    """The status of a request for one of the models."""
    body = {
        "modality": "language",
        "contents": ["a"],
        "modelConfig": {"modelName": f"name/{number}", "modelProperties": properties(number)},
        "preprocessingConfig": {"modality": "language"},
    }
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    return session.post(f"{url}/vectorise", data=msgpack.packb(body), headers=headers, timeout=120).status_code


def properties(number: int) -> Mapping[str, Any]:
    """Properties that no request has had before."""
    kinds: tuple[Mapping[str, Any], ...] = (
        {"type": "random", "name": f"random/{number}", "dimensions": 32, "notes": LONG},
        {**CLIP, "name": f"hf-hub:nobody/{number}"},
        {**CLIP, "url": f"http://127.0.0.1:9/{number}.pt"},
        {**CLIP, "localpath": f"/nowhere/{number}.pt"},
    )
    return kinds[number % len(kinds)]


def resident() -> dict[str, int]:
    """Resident bytes of the replica of each deployment."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        line = " ".join(process.cmdline())
        for name in DEPLOYMENTS:
            if f"ServeReplica:marqo:{name}" in line:
                found[name] = process.memory_info().rss
    return found


def left(folder: Path) -> int:
    """Files and folders below a folder."""
    return sum(1 for _ in folder.rglob("*")) if folder.is_dir() else 0


def grown(result: Mapping[str, Any]) -> dict[str, float]:
    """MiB by which each replica is larger in the last three tenths than in the second to the fourth.

    The first tenth is left out: caches of bounded size fill up in it.
    """

    def mean(tenths: Sequence[Mapping[str, Any]], name: str) -> float:
        return statistics.mean(float(tenth["MiB"].get(name, 0.0)) for tenth in tenths)

    tenths = result["tenths"]
    return {name: mean(tenths[-3:], name) - mean(tenths[1:4], name) for name in tenths[0]["MiB"]}


def slowest(result: Mapping[str, Any]) -> float:
    """Seconds of the slowest `GET /models`."""
    return float(max(tenth["listing"]["seconds"] for tenth in result["tenths"]))


def rows(result: Mapping[str, Any]) -> Table:
    """A line for each tenth, then the growth."""
    table = [["models named", *(f"{name}, MiB" for name in DEPLOYMENTS), "GET /models, s", "its KiB", "statuses"]]
    for tenth in result["tenths"]:
        memory = [f"{tenth['MiB'].get(name, 0.0):.1f}" for name in DEPLOYMENTS]
        listing = [f"{tenth['listing']['seconds']:.3f}", f"{tenth['listing']['bytes'] / 1024:.0f}"]
        statuses = ", ".join(f"{count} x {status}" for status, count in tenth["statuses"].items())
        table.append([f"{tenth['models']:,}", *memory, *listing, statuses])
    growth = grown(result)
    table.append(["(grown)", *(f"{growth.get(name, 0.0):+.1f}" for name in DEPLOYMENTS), "", "", ""])
    table.append([f"(files and folders left on the disk: {result['left on the disk']})", *[""] * 6])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """The largest growth of a replica, the slowest listing, and what is left on the disk."""
    return {
        "many_names_mib_grown": [max(grown(result).values())],
        "many_names_slowest_listing_s": [slowest(result)],
        "many_names_left_on_the_disk": [float(result["left on the disk"])],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Resident memory of each replica."""
    for name in DEPLOYMENTS:
        values = [tenth["MiB"].get(name) for tenth in result["tenths"]]
        axes.plot([tenth["models"] for tenth in result["tenths"]], values, "o-", label=name)
    axes.set_ylim(0)
    axes.set_xlabel("models named so far")
    axes.set_ylabel("resident memory, MiB")
    axes.legend()


def verdict(result: Mapping[str, Any]) -> str:
    """Growth of more than 30 MiB, and a listing that fails or takes more than a second."""
    problems = [f"{name} has grown by {mib:.0f} MiB" for name, mib in grown(result).items() if mib > MOST_GROWTH_MIB]
    if slowest(result) > MOST_LISTING_S:
        problems.append(f"GET /models took {slowest(result):.1f} s")
    failed = {tenth["listing"]["status"] for tenth in result["tenths"]} - {200}
    if failed:
        problems.append(f"GET /models answered {', '.join(map(str, sorted(failed)))}")
    return ", ".join(problems)


BENCHMARK = Benchmark(
    name="many_names",
    title="Thousands of models, each named once: memory of the replicas, and the time of GET /models",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    verdict=verdict,
    options=(Option("models", int, ("N",), "how many models are named"),),
)
