"""Growth of memory, descriptors, threads and objects under mixed traffic: `python -m benchmarks.run soak --minutes 20`.

They are sampled every few seconds for every kind of process, and for Ray's object store. After a warm-up of a quarter
of the time, a line is fitted to each: its slope has a 95 % confidence interval from the means of twelve blocks, so that
neighbouring samples do not count as independent. Something grows if the whole interval is above the tolerance.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgpack
import msgpack_numpy
import numpy as np

from benchmarks.lib import models, pictures, traffic
from benchmarks.lib.benchmark import Benchmark, Figures, Option, Result, Table
from benchmarks.lib.server import Shape, described, graph
from benchmarks.lib.traffic import World
from benchmarks.lib.watch import MEASURES, Sample, total, watching
from benchmarks.lib.web import misbehaving

MINUTES, QUICK_MINUTES = 20.0, 1.0
CLIENTS = 4
BLOCKS = 12
STUDENT_T = 2.228
"""97.5 % quantile of Student's t with BLOCKS - 2 degrees of freedom."""
WARM_UP = 0.25
MIB = 2**20
UNITS = {"rss": MIB, "anonymous": MIB, "object bytes": MIB}
TOLERANCES = {"anonymous": 1.0, "descriptors": 1.0, "threads": 0.5, "objects": 2.0, "object bytes": 1.0}
"""Growth per minute that counts as noise. Resident bytes have no verdict: they include shared pages of Ray's store, of
which each process touches more and more, up to the store's size."""


def measure(quick: bool, minutes: float | None = None) -> Result:
    """The samples, the slopes, and what became of the requests; within `minutes`, or twenty, or one if quick."""
    seconds = 60.0 * (minutes or (QUICK_MINUTES if quick else MINUTES))
    checkpoint, paths, large = models.small_clip(), pictures.normal(), pictures.large()
    folder = _together([*paths, *large])
    known_models: dict[str, dict[str, Any]] = {"demo/clip": {}, checkpoint.architecture: checkpoint.properties}
    with misbehaving(folder) as port, graph(Shape(ingress={"max_contents": 4096})) as server:
        world = World(
            url=server.url,
            host=f"http://127.0.0.1:{port}",
            pictures={f"/ok/{path.parent.name}-{path.name}": path for path in paths},
            large=[f"/ok/{path.parent.name}-{path.name}" for path in large],
            models=known_models,
        )
        known = _vectors(world)
        with (
            watching(server.pid, max(1.0, seconds / 240)) as samples,
            multiprocessing.get_context("spawn").Pool(1) as pool,
        ):
            done, wrong = pool.apply(traffic.run, (world, known, CLIENTS, seconds))
    started = samples[0]["at"]
    for sample in samples:
        sample["at"] -= started
    return {
        "shape": described(),
        "minutes": seconds / 60,
        "done": done,
        "wrong": len(wrong),
        "what was wrong": wrong[:20],
        "slopes": slopes(samples),
        "samples": samples,
    }


def rows(result: Mapping[str, Any]) -> Table:
    """The slope of each measure of each kind of process, and what became of the requests."""
    table = [["", "at the end", "growth per minute", "95 % interval", "verdict"]]
    for one in result["slopes"]:
        low, high = one["interval"]
        verdict = "–" if one["grows"] is None else "GROWS" if one["grows"] else "steady"
        name = f"{one['group']}: {one['measure']}{', MiB' if one['measure'] in UNITS else ''}"
        table.append([name, f"{one['last']:.1f}", f"{one['slope']:+.3f}", f"{low:+.3f} … {high:+.3f}", verdict])
    requests = sum(result["done"].values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result["done"].items()))
    table.append([f"({result['minutes']:.0f} minutes, {requests} requests: {kinds})", "", "", "", ""])
    table.append([f"(answers that were not as they should be: {result['wrong']})", "", "", "", ""])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """Growth of all memory, how many measures grow, and how many answers were wrong."""
    (memory,) = (one for one in result["slopes"] if (one["group"], one["measure"]) == ("all", "anonymous"))
    return {
        "soak_mib_per_minute": [memory["slope"]],
        "soak_growing": [float(sum(bool(one["grows"]) for one in result["slopes"]))],
        "soak_wrong": [float(result["wrong"])],
    }


def draw(result: Mapping[str, Any], axes: Any) -> None:
    """Anonymous memory of each kind of process over time."""
    samples = result["samples"]
    for group in sorted(samples[-1]["groups"]):
        values = [one["groups"].get(group, {}).get("anonymous", 0) / MIB for one in samples]
        axes.plot([one["at"] / 60 for one in samples], values, label=group)
    axes.plot([one["at"] / 60 for one in samples], [one["object bytes"] / MIB for one in samples], label="objects")
    axes.axvline(WARM_UP * result["minutes"], linestyle=":", color="grey")
    axes.set_ylim(0)
    axes.set_xlabel("minutes")
    axes.set_ylabel("memory, MiB")
    axes.legend(ncols=2, fontsize=8)


def verdict(result: Mapping[str, Any]) -> str:
    """What grows, and how many answers were wrong."""
    problems = [f"{one['group']}: {one['measure']} grows" for one in result["slopes"] if one["grows"]]
    if result["wrong"]:
        problems.append(f"{result['wrong']} wrong answers: {'; '.join(result['what was wrong'])}")
    return ", ".join(problems)


def slopes(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """For each kind of process and measure: the slope per minute, its interval, and whether it `grows` (None: there is
    no tolerance for it)."""
    warm = samples[int(len(samples) * WARM_UP) :]
    series = {
        (group, measure): [one["groups"].get(group, {}).get(measure, 0) for one in warm]
        for group in sorted(warm[-1]["groups"])
        for measure in MEASURES
    }
    series |= {("all", measure): [total(one, measure) for one in warm] for measure in MEASURES}
    series |= {("store", measure): [one[measure] for one in warm] for measure in ("objects", "object bytes")}
    times = [one["at"] / 60 for one in warm]
    return [_slope(group, measure, times, values) for (group, measure), values in series.items()]


def _slope(group: str, measure: str, times: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    scaled = np.array(values, float) / UNITS.get(measure, 1)
    x = np.array([block.mean() for block in np.array_split(np.array(times), BLOCKS)])
    y = np.array([block.mean() for block in np.array_split(scaled, BLOCKS)])
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    residuals = y - y.mean() - slope * (x - x.mean())
    error = STUDENT_T * np.sqrt((residuals**2).sum() / (BLOCKS - 2) / spread)
    tolerance = TOLERANCES.get(measure)
    return {
        "group": group,
        "measure": measure,
        "last": float(y[-1]),
        "slope": float(slope),
        "interval": [float(slope - error), float(slope + error)],
        "grows": None if tolerance is None else bool(slope - error > tolerance),
    }


def _together(paths: Sequence[Path]) -> Path:
    """Makes a folder with links to all pictures."""
    folder = pictures.NORMAL.parent / "all"
    folder.mkdir(exist_ok=True)
    for path in paths:
        link = folder / f"{path.parent.name}-{path.name}"
        if not link.exists():
            link.symlink_to(path)
    return folder


def _vectors(world: World) -> dict[tuple[str, str], np.ndarray]:
    """The vectors that the idle server answers for each small picture, by model and path."""
    known: dict[tuple[str, str], np.ndarray] = {}
    for model, properties in world.models.items():
        paths = list(world.pictures)
        body = traffic.request([world.host + path for path in paths], "image", model, properties or None)
        reply = httpx.post(f"{world.url}/vectorise", content=msgpack.packb(body), headers=traffic.HEADERS, timeout=300)
        items = msgpack.unpackb(reply.content, object_hook=msgpack_numpy.decode)["result"]
        known |= {(model, path): item[0][1] for path, item in zip(paths, items, strict=True)}
    return known


BENCHMARK = Benchmark(
    name="soak",
    title="Twenty minutes of mixed traffic: growth per minute after the warm-up",
    measure=measure,
    rows=rows,
    summary=summary,
    draw=draw,
    verdict=verdict,
    options=(Option("minutes", float, ("M",), "how long it takes"),),
)
