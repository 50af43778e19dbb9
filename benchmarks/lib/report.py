"""What a benchmark's run leaves behind: JSON, a table, a diagram, figures in a summary, and a section of RESULTS.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.lib.benchmark import Benchmark
from benchmarks.lib.places import OUT, RESULTS, ROOT

TRIALS = OUT / "quick"
"""Where trials are kept: quick runs, and runs of a part. No figure of a full run is ever replaced by a trial's."""
RESULTS_FILE = RESULTS.parent / "RESULTS.md"
PACKAGES = ("ray", "torch", "torchvision", "open_clip_torch", "pillow", "numpy", "aiohttp")
FOR_MATRICES = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
INTRODUCTION = """# Results

The first sections are made by `benchmarks/lib/report.py` from the JSON of the last full runs: edit nothing there.
Sections with other titles, at the end, are written by hand and stay as they are. What each figure means is said in the
benchmark's own file. Ratios carry over to other machines, absolute figures do not."""


def run(benchmark: Benchmark, quick: bool, options: Mapping[str, Any], command: str, trial: bool) -> dict[str, Any]:
    """Measures, and writes the result down.

    Args:
        benchmark: what to measure.
        quick: a short version of it.
        options: its own options that were given.
        command: the command line, for the record.
        trial: whether the result is kept in `TRIALS`.

    Returns:
        `{"environment": …, "load average": …, "seconds": …, "result": …}`.
    """
    load = {"before": os.getloadavg()[0]}
    started = time.monotonic()
    result = benchmark.measure(quick, **options)
    load["after"] = os.getloadavg()[0]
    record = {
        "environment": environment(command, quick),
        "load average": load,
        "seconds": round(time.monotonic() - started, 1),
        "result": result,
    }
    folder = TRIALS if trial else OUT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{benchmark.name}.json").write_text(json.dumps(record, indent=1))
    _draw(benchmark, result, (folder if trial else RESULTS) / f"{benchmark.name}.png")
    _merge(folder / "summary.json", benchmark.summary(result))
    show(benchmark, record)
    return record


def environment(command: str, quick: bool) -> dict[str, Any]:
    """The machine, the versions of Python and of packages, the commit and the time."""
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


def show(benchmark: Benchmark, record: Mapping[str, Any]) -> None:
    """Prints the table on the terminal."""
    header, *lines = benchmark.rows(record["result"])
    table = Table(title=benchmark.title)
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print(table)
    about, load = record["environment"], record["load average"]
    console.print(f"{about['cpu']}, {about['cores']} cores; {record['seconds']} s; ", end="")
    console.print(f"load average {load['before']:.1f} before, {load['after']:.1f} after\n")


def write_results(benchmarks: Sequence[Benchmark], results: Path = RESULTS_FILE, records: Path = OUT) -> Path:
    """Writes RESULTS.md: first a section for each benchmark, then all other sections of the file as it was.

    A benchmark's section is made of its JSON. Without JSON the section that the file has stays. Sections with titles
    of no benchmark come last, unchanged and in their order.

    Args:
        benchmarks: in the order of their sections.
        results: the file, which need not exist yet.
        records: the folder with the JSON of full runs.

    Returns:
        The file.
    """
    sections = _sections(results.read_text()) if results.exists() else []
    known = dict(sections)
    parts = [INTRODUCTION]
    for benchmark in benchmarks:
        record = records / f"{benchmark.name}.json"
        if record.exists():
            parts.append(_section(benchmark, json.loads(record.read_text())))
        elif benchmark.title in known:
            parts.append(known[benchmark.title].strip())
    titles = {benchmark.title for benchmark in benchmarks}
    others = "".join(text for title, text in sections if title not in titles)
    results.write_text("\n\n".join([*parts, *([others] if others else [])]).rstrip("\n") + "\n")
    return results


def _sections(text: str) -> list[tuple[str, str]]:
    """Title and text of each section: from a heading of the second level, which the text includes, to the next."""
    sections: list[tuple[str, str]] = []
    in_code = False
    for line in text.splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if line.startswith("## ") and not in_code:
            sections.append((line.removeprefix("## ").strip(), line))
        elif sections:
            title, before = sections.pop()
            sections.append((title, before + line))
    return sections


def _section(benchmark: Benchmark, record: Mapping[str, Any]) -> str:
    about, load = record["environment"], record["load average"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    versions += "".join(f", {name} {version}" for name, version in record["result"].get("versions", {}).items())
    header, *lines = benchmark.rows(record["result"])
    table = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    diagram = [] if benchmark.draw is None else [f"![{benchmark.title}](results/{benchmark.name}.png)", ""]
    return "\n".join(
        [
            f"## {benchmark.title}",
            "",
            *(f"| {' | '.join(line)} |" for line in table),
            "",
            *diagram,
            f"`{about['command']}`, {about['date']}, commit {about['commit']}, {record['seconds']:.0f} s. "
            f"{about['cpu']}, {about['cores']} cores, {about['memory GiB']} GiB; load average {load['before']:.1f} "
            f"before, {load['after']:.1f} after. Python {about['python']}, {versions}.",
        ]
    )


def _merge(path: Path, figures: Mapping[str, Sequence[float]]) -> None:
    """Adds the median of each figure's runs, and the runs, to a summary; figures of other benchmarks stay."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, runs in figures.items():
        known |= {name: round(statistics.median(runs), 3), f"{name}_runs": [round(run, 3) for run in runs]}
    path.write_text(json.dumps(known, indent=1))


def _draw(benchmark: Benchmark, result: Mapping[str, Any], path: Path) -> None:
    if benchmark.draw is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.set_title(benchmark.title, fontsize=10)
    benchmark.draw(result, axes)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, and what it has beside AVX2 for products of matrices: the same name may stand for several
    generations, which differ in that."""
    lines = [line.partition(":") for line in info.read_text().splitlines()] if info.exists() else []
    values = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # the first core's
    name = values.get("model name") or platform.processor() or "unknown CPU"
    has = [flag for flag in FOR_MATRICES if flag in values.get("flags", "").split()]
    return f"{name} ({', '.join(has)})" if has else name


def _commit() -> str:
    """Short hash of the checkout, with a plus sign if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "none"
