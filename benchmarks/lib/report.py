"""What benchmarks leave behind: JSON, tables, pictures, the summary, and RESULTS.md, all made from plain data."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.lib.places import OUT, RESULTS, ROOT

PACKAGES = ("ray", "torch", "torchvision", "open_clip_torch", "pillow", "numpy", "aiohttp")


def environment(command: str, quick: bool) -> dict[str, Any]:
    """The machine, the versions and the moment."""
    return {
        "command": command,
        "quick": quick,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def run(benchmark: ModuleType, quick: bool, command: str) -> dict[str, Any]:
    """Measures, and writes everything down: `{"environment": …, "load average": …, "result": …}`."""
    load = {"before": os.getloadavg()[0]}
    started = time.monotonic()
    result = benchmark.measure(quick)
    load["after"] = os.getloadavg()[0]
    record = {
        "environment": environment(command, quick),
        "load average": load,
        "seconds": round(time.monotonic() - started, 1),
        "result": result,
    }
    folder = OUT / "quick" if quick else OUT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{benchmark.NAME}.json").write_text(json.dumps(record, indent=1))
    _draw(benchmark, result, (folder if quick else RESULTS) / f"{benchmark.NAME}.png")
    merge_summary(benchmark.summary(result), quick)
    show(benchmark, record)
    return record


def show(benchmark: ModuleType, record: Mapping[str, Any]) -> None:
    """The table, on the terminal."""
    header, *lines = benchmark.rows(record["result"])
    table = Table(title=benchmark.TITLE)
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    load = record["load average"]
    console.print(f"{record['seconds']} s; load average {load['before']:.1f} before, {load['after']:.1f} after\n")


def merge_summary(figures: Mapping[str, Sequence[float]], quick: bool) -> None:
    """Adds the median of each figure's runs, and the runs, to the summary: another target's figures stay.

    A quick run has a summary of its own, so that no figure of a full one is ever replaced by it.
    """
    path = (OUT / "quick" if quick else OUT) / "summary.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, runs in figures.items():
        known |= {name: round(statistics.median(runs), 3), f"{name}_runs": [round(run, 3) for run in runs]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1))


def write_results(benchmarks: Sequence[ModuleType]) -> Path:
    """RESULTS.md, from the JSON of what has been run in full here; sections of other benchmarks stay as they are."""
    results = RESULTS.parent / "RESULTS.md"
    known = _known_sections(results.read_text()) if results.exists() else {}
    parts = [
        "# Results",
        "",
        "Made by `benchmarks/lib/report.py` from the JSON of the last full runs; edit nothing here. What each figure"
        " means is said in the benchmark's own file. Ratios carry over to other machines, absolute figures do not.",
    ]
    for benchmark in benchmarks:
        path = OUT / f"{benchmark.NAME}.json"
        if path.exists():
            parts += _section(benchmark, json.loads(path.read_text()))
        elif benchmark.TITLE in known:
            parts += ["", known[benchmark.TITLE].strip()]
    results.write_text("\n".join(parts) + "\n")
    return results


def _known_sections(text: str) -> dict[str, str]:
    """Each section, by its title."""
    sections = (f"## {section}" for section in text.split("\n## ")[1:])
    return {section.partition("\n")[0].removeprefix("## "): section for section in sections}


def _section(benchmark: ModuleType, record: Mapping[str, Any]) -> list[str]:
    about, load = record["environment"], record["load average"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    versions += "".join(f", {name} {version}" for name, version in record["result"].get("versions", {}).items())
    header, *lines = benchmark.rows(record["result"])
    table = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return [
        "",
        f"## {benchmark.TITLE}",
        "",
        *(f"| {' | '.join(line)} |" for line in table),
        "",
        f"![{benchmark.TITLE}](results/{benchmark.NAME}.png)",
        "",
        f"`{about['command']}`, {about['date']}, commit {about['commit']}, {record['seconds']:.0f} s. "
        f"{about['cpu']}, {about['cores']} cores, {about['memory GiB']} GiB; load average {load['before']:.1f} before, "
        f"{load['after']:.1f} after. Python {about['python']}, {versions}.",
    ]


def _draw(benchmark: ModuleType, result: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.set_title(benchmark.TITLE, fontsize=10)
    benchmark.draw(result, axes)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor() or "unknown CPU"


def _commit() -> str:
    """Short hash of the checkout, with a plus sign if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "none"


def command_line() -> str:
    """The command that runs now, as one would type it."""
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else sys.argv[0]
    return " ".join(["python -m", name, *sys.argv[1:]])
