"""Models without end, each named once: what that leaves in the memory of each process, and in the folder of downloads.

    python -m benchmarks.many_names [--models 20000]

In turn: `random` models with long properties, repositories that the hub does not have, URLs of a dead host, paths that
are refused. Prints the memory of the replicas and the time of `GET /models` ten times on the way, and at the end what
is on the disk. Fails if the last third takes 30 MiB more than the first, or `GET /models` a second.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import psutil
import requests
import yaml

from benchmarks.lib.places import OUT, ROOT
from benchmarks.lib.process import free_port
from operations.launch import running

CLIENTS = 4
MOST_GROWTH = 30 * 2**20
LONG = "x" * 90_000
CLIP = {"name": "ViT-B-32", "dimensions": 512, "type": "open_clip"}


def properties(number: int) -> Mapping[str, Any]:
    """One that nobody has named before."""
    kinds: tuple[Mapping[str, Any], ...] = (
        {"type": "random", "name": f"random/{number}", "dimensions": 32, "notes": LONG},
        {**CLIP, "name": f"hf-hub:nobody/{number}"},
        {**CLIP, "url": f"http://127.0.0.1:9/{number}.pt"},
        {**CLIP, "localpath": f"/nowhere/{number}.pt"},
    )
    return kinds[number % len(kinds)]


def ask(session: requests.Session, url: str, number: int) -> int:
    """Status of a request for one of them."""
    body = {
        "modality": "language",
        "contents": ["a"],
        "modelConfig": {"modelName": f"name/{number}", "modelProperties": properties(number)},
        "preprocessingConfig": {"modality": "language"},
    }
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    return session.post(f"{url}/vectorise", data=msgpack.packb(body), headers=headers, timeout=120).status_code


def resident() -> dict[str, int]:
    """Bytes of each replica of the graph."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        line = " ".join(process.cmdline())
        for name in ("Ingress", "Preprocessor", "Encoder"):
            if f"ServeReplica:marqo:{name}" in line:
                found[name] = process.memory_info().rss
    return found


def measured(url: str, models: int) -> list[dict[str, Any]]:
    """Memory, statuses and the time of `GET /models` after each tenth."""
    lines = []
    with ThreadPoolExecutor(CLIENTS) as pool, requests.Session() as session:
        for tenth in range(10):
            numbers = range(tenth * models // 10, (tenth + 1) * models // 10)
            statuses = list(pool.map(lambda number: ask(session, url, number), numbers))
            started = time.monotonic()
            reply = session.get(f"{url}/models?detailed=true", timeout=60)
            line = {
                "models": numbers.stop,
                "MiB": {name: round(nbytes / 2**20, 1) for name, nbytes in resident().items()},
                "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
                "GET /models": [reply.status_code, len(reply.content), round(time.monotonic() - started, 3)],
            }
            print(json.dumps(line), flush=True)
            lines.append(line)
    return lines


def grown(lines: list[dict[str, Any]]) -> dict[str, float]:
    """MiB by which the last third takes more than the first, but for the very first tenth: what is bounded fills up."""

    def mean(part: list[dict[str, Any]], name: str) -> float:
        return sum(line["MiB"].get(name, 0.0) for line in part) / len(part)

    return {name: round(mean(lines[-3:], name) - mean(lines[1:4], name), 1) for name in lines[0]["MiB"]}


def left(folder: Path) -> int:
    """Files and folders of a cache."""
    return sum(1 for _ in folder.rglob("*")) if folder.is_dir() else 0


def main() -> int:
    """Starts a server, names models, prints what that costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=int, default=20_000)
    models = parser.parse_args().models
    cache = OUT / "many_names"
    shutil.rmtree(cache, ignore_errors=True)
    config = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    config["http_options"]["port"] = free_port()
    sources = ["registry", "hub", "url"]
    options = {"model_sources": sources, "cache_dir": str(cache.absolute()), "allowed_networks": "127.0.0.0/8"}
    config["applications"][0]["args"]["encoder"] |= {"models": options}
    for deployment in config["applications"][0]["deployments"]:
        deployment.pop("autoscaling_config", None)
        if deployment["name"] == "Encoder":
            deployment["ray_actor_options"] = {"runtime_env": {"env_vars": {"HF_ENDPOINT": "http://127.0.0.1:9"}}}
    with running(config, log_to_driver=False):
        lines = measured(f"http://127.0.0.1:{config['http_options']['port']}", models)
    growth = grown(lines)
    slowest = max(line["GET /models"][2] for line in lines)
    print(json.dumps({"grown MiB": growth, "slowest GET /models, s": slowest, "left on the disk": left(cache)}))
    listed = all(line["GET /models"][0] == 200 for line in lines)
    return int(not listed or slowest > 1 or max(growth.values()) * 2**20 > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
