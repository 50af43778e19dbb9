"""RESULTS.md: sections of benchmarks are made of their JSON, all other sections stay as they were written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib import report
from benchmarks.lib.benchmark import Benchmark, Result, Table
from benchmarks.run import BENCHMARKS

HISTORY = """## The link is emulated

Written by hand.

### A part of it

| a | b |
| --- | ---: |
| 1 | 2 |


"""
SHELL = """## How it was measured

```sh
## not a heading
make bench
```
"""


def measure(quick: bool) -> Result:
    return {"quick": quick}


def rows(result: Mapping[str, Any]) -> Table:
    return [["", "value"], ["speed", str(result["speed"])]]


def draw(_: Mapping[str, Any], axes: Any) -> None:
    axes.plot([0, 1])


FAST = Benchmark("fast", "Fast: figures", measure, rows, draw=draw)
SLOW = Benchmark("slow", "Slow: figures", measure, rows)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "RESULTS.md"


def add_record(folder: Path, benchmark: Benchmark, speed: int) -> None:
    about = {"command": "run", "date": "today", "commit": "abc", "cpu": "CPU", "cores": 2, "memory GiB": 4}
    record = {
        "environment": {**about, "python": "3", "versions": {"ray": "2"}},
        "load average": {"before": 0.1, "after": 0.2},
        "seconds": 7.0,
        "result": {"speed": speed},
    }
    (folder / f"{benchmark.name}.json").write_text(json.dumps(record))


def write(results: Path) -> str:
    assert report.write_results([FAST, SLOW], results, results.parent) == results
    return results.read_text()


def test_sections_are_made_of_the_json_of_full_runs(results: Path) -> None:
    add_record(results.parent, FAST, 10)
    text = write(results)
    assert text.startswith("# Results\n")
    assert "## Fast: figures\n\n|  | value |\n| --- | ---: |\n| speed | 10 |\n" in text
    assert "![Fast: figures](results/fast.png)" in text
    assert "Slow" not in text
    add_record(results.parent, SLOW, 1)
    assert "results/slow.png" not in write(results)  # it draws nothing


def test_a_benchmark_without_json_keeps_its_section(results: Path) -> None:
    add_record(results.parent, FAST, 10)
    add_record(results.parent, SLOW, 1)
    before = write(results)
    (results.parent / "slow.json").unlink()
    assert write(results) == before
    add_record(results.parent, FAST, 11)
    assert write(results) == before.replace("| speed | 10 |", "| speed | 11 |")


def test_sections_of_no_benchmark_stay_at_the_end_unchanged_and_in_order(results: Path) -> None:
    results.write_text(f"# Results\n\n{HISTORY}## Slow: figures\n\nfrom before\n\n{SHELL}")
    add_record(results.parent, FAST, 10)
    text = write(results)
    assert text.endswith(HISTORY + SHELL)
    assert text.index("## Fast: figures") < text.index("## Slow: figures\n\nfrom before\n\n## The link")
    assert write(results) == text


def test_sections_of_no_benchmark_may_have_the_same_title(results: Path) -> None:
    results.write_text(f"# Results\n\n{HISTORY}{HISTORY}")
    assert write(results).count("Written by hand.") == 2


def test_the_committed_file_keeps_every_section(tmp_path: Path) -> None:
    copy = tmp_path / "RESULTS.md"
    copy.write_text(report.RESULTS_FILE.read_text())
    report.write_results(BENCHMARKS, copy, tmp_path)
    before, after = (
        sorted((title, section.strip()) for title, section in report._sections(path.read_text()))
        for path in (report.RESULTS_FILE, copy)
    )
    assert before == after


def test_names_and_titles_of_benchmarks_differ() -> None:
    assert len({one.name for one in BENCHMARKS}) == len({one.title for one in BENCHMARKS}) == len(BENCHMARKS)


def test_the_processor_is_named_with_what_it_has_for_products_of_matrices(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    core = "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n\n"
    info.write_text(core + core.replace("Some", "Other"))
    assert report._cpu(info) == "Some CPU (avx512f, avx512_bf16, amx_bf16)"
    info.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2\n")
    assert report._cpu(info) == "Some CPU"


def test_the_table_on_the_terminal_names_the_processor(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_record(results.parent, FAST, 10)
    report.show(FAST, json.loads((results.parent / "fast.json").read_text()))
    assert "CPU, 2 cores; 7.0 s; load average 0.1 before" in capsys.readouterr().out
