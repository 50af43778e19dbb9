"""Pictures per second of every server: each is started afresh, one after the other, in several rounds.

The others can be run in several ways. Each way is tried once, shortly; the best ones of each server go into the rounds.
Whatever is measured is checked: its vectors are compared with those of open_clip's own transform and model.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from benchmarks.lib import models, pictures
from benchmarks.lib.benchmark import Benchmark, Figures, Result
from benchmarks.lib.load import closed_loop, once
from benchmarks.lib.models import Checkpoint
from benchmarks.lib.process import NotStarted
from benchmarks.lib.vectors import deviation
from benchmarks.lib.web import web
from benchmarks.peers import report
from benchmarks.peers.reference import reference
from benchmarks.peers.report import shown_rate
from benchmarks.peers.servers import (
    CORES,
    Entrant,
    Runtime,
    bentoml,
    bentoml_entrants,
    infinity_entrants,
    optimum,
    our_entrants,
    plain_entrants,
)
from benchmarks.peers.venvs import make_all, version

CLIENTS = 6
FIRST = 32
"""Pictures of the first request: some servers load their model, or compile it, when it comes."""
CHECKED = 8
"""Of these, whose vectors are compared."""
FAILURES = (NotStarted, OSError, ValueError, TimeoutError, aiohttp.ClientError, http.client.HTTPException)
"""How a server that does not work shows itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Args:
        rounds: how often each server is measured.
        seconds: of each measurement.
        try_seconds: of each trial; 0: none takes place, and the first configurations are taken.
        finalists: how many configurations of each family and precision go into the rounds.
        tensors: whether BentoML is asked with preprocessed tensors too.
    """

    rounds: int
    seconds: float
    try_seconds: float
    finalists: Mapping[str, int]
    tensors: bool


QUICK = Plan(1, 4.0, 0.0, {}, tensors=False)


def comparison(
    name: str,
    suffix: str,
    model: str,
    checkpoint: Callable[[], Checkpoint],
    plan: Plan,
    entrants: Callable[[], Sequence[Entrant]],
) -> Benchmark:
    """The comparison with one model.

    Args:
        name: of its files.
        suffix: of its figures in the summary.
        model: for the title.
        checkpoint: makes the model that all serve.
        plan: how much is measured, unless it is a quick run.
        entrants: every configuration of every server. Families with several of one precision are tried first.
    """

    def measure(quick: bool) -> Result:
        return _measure(checkpoint(), QUICK if quick else plan, entrants())

    def summary(result: Mapping[str, Any]) -> Figures:
        return {f"{key}{suffix}": runs for key, runs in report.ratios(result).items()}

    title = f"Peers, {model}: pictures per second by URL"
    return Benchmark(name, title, measure, report.rows, summary, report.draw, report.verdict, prepare=make_all)


def _measure(checkpoint: Checkpoint, plan: Plan, entrants: Sequence[Entrant]) -> Result:
    paths = pictures.normal()
    expected, distance = reference(checkpoint, paths[:CHECKED])
    with web(paths) as urls:

        def measured(entrant: Entrant, seconds: float) -> dict[str, Any]:
            found = attempt(entrant, checkpoint, urls, seconds, expected)
            print(f"  {entrant.name}: {found['problem'] or shown_rate(found['rate']) + ' pictures/s'}", flush=True)
            return found

        trials = to_try(entrants, plan.finalists) if plan.try_seconds else []
        tried = {one.name: measured(one, plan.try_seconds) for one in trials}
        chosen = finalists(entrants, tried, plan.finalists)
        rounds = [{one.name: measured(one, plan.seconds) for one in chosen} for _ in range(plan.rounds)]
        tensors = _tensor_path(checkpoint, (1, 32)) if plan.tensors else []
    return {
        "entrants": {
            one.name: {"family": one.family, "way": one.way, "precision": one.precision, "clients": one.clients}
            for one in entrants
        },
        "tried": tried,
        "rounds": rounds,
        "distance between pictures": distance,
        "bentoml tensors": tensors,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    packages = {
        "bentoml": ("bentoml",),
        "infinity": ("infinity-emb", "transformers"),
        "plain": ("fastapi", "onnxruntime"),
    }
    return {f"{package} ({peer})": version(peer, package) for peer, names in packages.items() for package in names}


def _groups(entrants: Iterable[Entrant]) -> dict[tuple[str, str], list[Entrant]]:
    """By family and precision."""
    groups: dict[tuple[str, str], list[Entrant]] = {}
    for one in entrants:
        groups.setdefault((one.family, one.precision), []).append(one)
    return groups


def to_try(entrants: Sequence[Entrant], allowed: Mapping[str, int]) -> list[Entrant]:
    """Those of families that have more configurations of a precision than may go into the rounds."""
    return [
        one
        for (family, _), rivals in _groups(entrants).items()
        if len(rivals) > allowed.get(family, 1)
        for one in rivals
    ]


def finalists(
    entrants: Sequence[Entrant], tried: Mapping[str, Mapping[str, Any]], allowed: Mapping[str, int]
) -> list[Entrant]:
    """The quickest configurations of each family and precision, in the order of the entrants' families.

    Args:
        entrants: all of them.
        tried: what `attempt` found, by name, of those that were tried.
        allowed: how many of a family; by default one.
    """
    chosen = []
    for (family, _), rivals in _groups(entrants).items():
        best = sorted(rivals, key=lambda one: tried[one.name]["rate"] if one.name in tried else 0.0, reverse=True)
        chosen += best[: allowed.get(family, 1)]
    return chosen


def attempt(
    entrant: Entrant, checkpoint: Checkpoint, urls: Sequence[str], seconds: float, expected: np.ndarray
) -> dict[str, Any]:
    """Starts a server, checks its vectors and loads it.

    Args:
        entrant: the server.
        checkpoint: what it serves.
        urls: of the pictures.
        seconds: of the load.
        expected: the right vectors of the first pictures: float32 (n, dimensions), normalised.

    Returns:
        `rate` in pictures per second, 0 if nothing was answered; `cpu ms` of each picture; `deviation`, the largest
        1 - cosine, or None if there was no vector; `problem`, why nothing was answered, or an empty text.
    """
    far: float | None = None
    try:
        with entrant.start(checkpoint) as peer:
            far = deviation(once(peer.target, urls[:FIRST])[: len(expected)], expected)
            served = closed_loop(peer.target, urls, entrant.clients, seconds, peer.meter())
    except FAILURES as error:
        return _nothing(far, _sentence(error))
    except ExceptionGroup as errors:  # of the clients, which run side by side
        failures, others = errors.split(FAILURES)
        if others is not None or failures is None:
            raise
        return _nothing(far, _sentence(failures.exceptions[0]))
    if not served.items:
        return _nothing(far, f"no answer in {seconds:g} s")
    cpu = sum(served.cpu_ms.values())
    return {"rate": served.rate, "cpu ms": cpu, "load average": os.getloadavg()[0], "deviation": far, "problem": ""}


def _nothing(far: float | None, problem: str) -> dict[str, Any]:
    return {"rate": 0.0, "cpu ms": None, "load average": os.getloadavg()[0], "deviation": far, "problem": problem}


def _sentence(error: BaseException) -> str:
    """What a server said last, or why it could not be asked."""
    first, *log = str(error).splitlines() or [""]
    said = [line.strip() for line in log if "Error: " in line]
    return (said[-1] if said else first.removesuffix("; the end of its log:") or type(error).__name__)[:200]


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


# Where nothing is tried, the first of each family and precision are taken.
def _small() -> list[Entrant]:
    runtimes: tuple[Runtime, ...] = ("onnx", "torch")
    return [
        *our_entrants(CLIENTS, bf16=False),
        *infinity_entrants(CLIENTS),
        *plain_entrants(CLIENTS, runtimes),
        *bentoml_entrants((CLIENTS, 2 * CLIENTS), runtimes, (64, 32), (CORES,)),
        *(bentoml_entrants((CLIENTS,), runtimes, (64,), (1,)) if CORES > 1 else ()),
    ]


def _vit_b_32() -> list[Entrant]:
    runtimes: tuple[Runtime, ...] = ("onnx", "torch")
    return [
        *our_entrants(CLIENTS, has_bf16()),
        *infinity_entrants(CLIENTS),
        optimum(CLIENTS),
        *plain_entrants(CLIENTS, runtimes),
        *bentoml_entrants((CLIENTS,), (*runtimes, *_bf16()), (64,), sorted({1, CORES})),
    ]


def _vit_l_14() -> list[Entrant]:
    """What is best with ViT-B-32. With fewer clients: at two pictures a second six of them wait for minutes."""
    clients = 2
    return [
        *our_entrants(clients, has_bf16()),
        infinity_entrants(clients)[0],
        *plain_entrants(clients, ("onnx",)),
        *bentoml_entrants((clients,), ("onnx", *_bf16()), (64,), (1,)),
    ]


def _bf16() -> tuple[Runtime, ...]:
    return ("torch-bf16",) if has_bf16() else ()


def has_bf16() -> bool:
    """Whether this processor multiplies matrices of bfloat16. Imports torch."""
    from embedding.models.cpu.capabilities import has_bf16

    return has_bf16()


SMALL = comparison("peers", "", "small CLIP", models.small_clip, Plan(3, 8.0, 4.0, {"BentoML": 2}, True), _small)
VIT_B_32 = comparison(
    "peers-vit-b-32", "_vit_b32", "ViT-B-32", models.vit_b_32, Plan(2, 16.0, 6.0, {}, True), _vit_b_32
)
VIT_L_14 = comparison(
    "peers-vit-l-14", "_vit_l14", "ViT-L-14", models.vit_l_14, Plan(1, 40.0, 0.0, {}, False), _vit_l_14
)
