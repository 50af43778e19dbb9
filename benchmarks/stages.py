"""The bare stages of the work, in one process and one thread: CPU time per picture or text, ours and the reference's.

Their sum is the least CPU time that serving can take. The reference is open_clip's own validation transform; "fast" is
`jpeg_scaling: fast`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import models, pictures
from benchmarks.lib.bare import cpu_ms, processes, stages
from benchmarks.lib.benchmark import Benchmark, Figures, Result, Table
from benchmarks.lib.web import web


def measure(quick: bool) -> Result:
    """CPU milliseconds per item of each stage, in alternating rounds: `{"stages": {name: [ms, ...]}}`."""
    rounds = 2 if quick else 5
    checkpoint = models.small_clip()
    normal, large = pictures.normal(), pictures.large()
    with web(normal) as urls, processes(1) as one:
        measured = one.submit(_rounds, checkpoint, urls, normal[: 16 if quick else None], large, rounds).result()
    return {"stages": measured, "pictures": _sizes(normal), "large pictures": _sizes(large)}


def _rounds(
    checkpoint: models.Checkpoint, urls: Sequence[str], normal: Sequence[Path], large: Sequence[Path], rounds: int
) -> dict[str, list[float]]:
    with stages(checkpoint, urls, normal, large) as ready:
        for name, stage in ready.items():
            if "12 MP" not in name:
                stage()  # the first call fills caches and allocates memory
        runs = [{name: cpu_ms(stage) for name, stage in ready.items()} for _ in range(rounds)]
    return {name: [run[name] for run in runs] for name in runs[0]}


def _sizes(paths: Sequence[Path]) -> dict[str, float]:
    sizes = [path.stat().st_size for path in paths]
    return {"count": len(sizes), "mean bytes": statistics.mean(sizes)}


def rows(result: Mapping[str, Any]) -> Table:
    """Median CPU milliseconds of each stage."""
    table = [["stage", "CPU ms", "runs"]]
    for stage, runs in result["stages"].items():
        table.append([stage, f"{statistics.median(runs):.2f}", str(len(runs))])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """How many times faster than the reference pictures are preprocessed."""
    measured = result["stages"]

    def ratio(reference: str, ours: str) -> list[float]:
        return [theirs / mine for theirs, mine in zip(measured[reference], measured[ours], strict=True)]

    return {
        "preprocess_ratio": ratio("preprocess, reference", "preprocess"),
        "preprocess_ratio_12mp": ratio("preprocess 12 MP, reference", "preprocess 12 MP"),
        "preprocess_ratio_12mp_fast": ratio("preprocess 12 MP, reference", "preprocess 12 MP, fast"),
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """A bar for each stage, the longest on top."""
    medians = {stage: statistics.median(runs) for stage, runs in result["stages"].items()}
    names = sorted(medians, key=medians.__getitem__)
    bars = axes.barh(names, [medians[name] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xscale("log")
    axes.set_xlabel("CPU ms per item")


BENCHMARK = Benchmark(
    name="stages",
    title="Bare stages: CPU milliseconds per picture or text, one thread",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    by_default=True,
)
