"""Pictures per second of every server: each is started afresh, one after the other, in several rounds.

BentoML has the most settings, so its best configurations are found first, in short runs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.load import closed_loop, once
from benchmarks.lib.models import Checkpoint
from benchmarks.lib.web import web
from benchmarks.peers.servers import BENTOML, SERVERS, Server, bentoml
from benchmarks.peers.venvs import make_all, version

CLIENTS = 6
TRIED_CLIENTS = (6, 12)
FINALISTS = 2
UNTUNED = [(name, CLIENTS) for name in BENTOML if name.endswith("of 64")]
Rounds = Sequence[Mapping[str, Mapping[str, Any]]]


def comparison(
    name: str, suffix: str, model: str, checkpoint: Callable[[], Checkpoint], rounds: int, seconds: float, tune: bool
) -> Benchmark:
    """The comparison with one model.

    Args:
        name: of its files.
        suffix: of its figures in the summary.
        model: for the title.
        checkpoint: makes the model that all serve.
        rounds: how often each server is measured.
        seconds: of each measurement.
        tune: whether the best configurations of BentoML are found first. Otherwise its default batch size is taken.
    """

    def measure(quick: bool) -> Result:
        shorter = (1, 4.0) if quick else (rounds, seconds)
        return _measure(checkpoint(), *shorter, tune)

    def summary(result: Mapping[str, Any]) -> Figures:
        return {f"{key}{suffix}": runs for key, runs in _ratios(result["rounds"]).items()}

    title = f"Peers, {model}: pictures per second by URL"
    return Benchmark(name, title, measure, _rows, summary, _draw, prepare=make_all)


def _measure(checkpoint: Checkpoint, rounds: int, seconds: float, tune: bool) -> Result:
    paths = pictures.normal()
    with web(paths) as urls:
        tried = _tried(checkpoint, urls, seconds / 2) if tune else {}
        best = sorted(tried, key=tried.__getitem__, reverse=True)[:FINALISTS] or UNTUNED
        entrants = [(name, SERVERS[name], CLIENTS) for name in SERVERS]
        entrants += [(_with_clients(name, clients), BENTOML[name], clients) for name, clients in best]
        measured = [
            {name: _measured(name, start, clients, checkpoint, urls, seconds) for name, start, clients in entrants}
            for _ in range(rounds)
        ]
        tensors = _tensor_path(checkpoint, (1, 32))
    versions = {
        "bentoml": version("bentoml", "bentoml"),
        "infinity-emb": version("infinity", "infinity-emb"),
        "transformers (infinity)": version("infinity", "transformers"),
        "fastapi (plain)": version("plain", "fastapi"),
    }
    return {
        "clients": CLIENTS,
        "tried": {_with_clients(*how): rate for how, rate in tried.items()},
        "rounds": measured,
        "bentoml tensors": tensors,
        "versions": versions,
    }


def _tried(checkpoint: Checkpoint, urls: Sequence[str], seconds: float) -> dict[tuple[str, int], float]:
    """Pictures per second of each configuration of BentoML with each number of clients, in one run each."""
    rates = {}
    for name, start in BENTOML.items():
        with start(checkpoint) as peer:
            once(peer.target, urls[:32])
            for clients in TRIED_CLIENTS:
                rates[name, clients] = closed_loop(peer.target, urls, clients, seconds).rate
                print(f"  tried {_with_clients(name, clients)}: {rates[name, clients]:.0f} pictures/s", flush=True)
    return rates


def _with_clients(name: str, clients: int) -> str:
    return f"{name}, {clients} clients"


def _measured(
    name: str, start: Server, clients: int, checkpoint: Checkpoint, urls: Sequence[str], seconds: float
) -> dict[str, Any]:
    with start(checkpoint) as peer:
        once(peer.target, urls[:32])  # some servers load their model, or try batch sizes, on the first request
        served = closed_loop(peer.target, urls, clients, seconds, peer.meter())
    print(f"  {name}: {served.rate:.0f} pictures/s", flush=True)
    return {"rate": served.rate, "cpu ms": sum(served.cpu_ms.values()), "load average": os.getloadavg()[0]}


def _tensor_path(checkpoint: Checkpoint, batches: Sequence[int]) -> list[dict[str, float]]:
    """BentoML with preprocessed tensors as JSON: milliseconds per picture and bytes sent, by batch size."""
    measured = []
    with bentoml(checkpoint) as peer:
        assert peer.tensors is not None
        for batch in batches:
            tensors = pictures.preprocessed(pictures.normal()[:batch]).tolist()
            sent = len(peer.tensors.pack(tensors))
            started = time.perf_counter()
            once(peer.tensors, tensors)
            elapsed = 1000 * (time.perf_counter() - started)
            measured.append({"batch": batch, "ms per picture": elapsed / batch, "bytes per picture": sent / batch})
    return measured


def _rows(result: Mapping[str, Any]) -> Table:
    rounds = result["rounds"]
    table = [["server", "pictures/s", "range", "CPU ms per picture", "ours / it"]]
    for name in rounds[0]:
        rates = [one[name]["rate"] for one in rounds]
        spread = f"{min(rates):.0f} - {max(rates):.0f}"
        cpu = statistics.median(one[name]["cpu ms"] for one in rounds)
        ratio = statistics.median(one["ours"]["rate"] / one[name]["rate"] for one in rounds)
        table.append([name, f"{statistics.median(rates):.0f}", spread, f"{cpu:.1f}", f"{ratio:.2f}"])
    if tried := result.get("tried", {}).values():  # older records have none
        table.append(
            [f"({len(tried)} configurations of BentoML tried)", "", f"{min(tried):.0f} - {max(tried):.0f}", "", ""]
        )
    for one in result["bentoml tensors"]:
        what = f"BentoML, JSON tensors, one request of {one['batch']}"
        table.append([what, f"{1000 / one['ms per picture']:.0f}", "", "", ""])
    return table


def _ratios(rounds: Rounds) -> Figures:
    """Our speed over that of each other server in each round; of BentoML the configuration with the best median."""
    best = max(
        (name for name in rounds[0] if name.startswith("BentoML")),
        key=lambda name: statistics.median(one[name]["rate"] for one in rounds),
    )
    names = {"vs_bentoml": best, "vs_infinity": "infinity", "vs_plain": "plain"}
    return {key: [one["ours"]["rate"] / one[name]["rate"] for one in rounds] for key, name in names.items()}


def _draw(result: Mapping[str, Any], axes: Any) -> None:
    rounds = result["rounds"]
    medians = {name: statistics.median(one[name]["rate"] for one in rounds) for name in rounds[0]}
    names = sorted(medians, key=medians.__getitem__)
    bars = axes.barh(names, [medians[name] for name in names])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    for position, name in enumerate(names):
        axes.plot([one[name]["rate"] for one in rounds], [position] * len(rounds), "k.", markersize=4)
    axes.set_xlabel("pictures per second")


SMALL = comparison("peers", "", "small CLIP", models.small_clip, rounds=3, seconds=10.0, tune=True)
# Too slow to try configurations: in a few seconds there are a handful of answers.
VIT_B_32 = comparison("peers-vit-b-32", "_vit_b32", "ViT-B-32", models.vit_b_32, rounds=2, seconds=24.0, tune=False)
