"""The command line of the benchmarks: what it runs, where results go, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from benchmarks.lib import report
from benchmarks.lib.benchmark import Benchmark, CannotMeasure, Option, Result, Table

DEFAULT = [
    "transport",
    "stages",
    "encoding",
    "pipeline",
    "latency",
    "batching",
    "shapes",
    "links",
    "waiting",
    "overload",
]


def names(*arguments: str) -> list[str]:
    return [one.name for one in run.parsed(arguments).benchmarks]


def test_without_names_the_default_set_runs() -> None:
    assert names() == names("--quick") == DEFAULT


@pytest.mark.parametrize(
    "name",
    [
        *("soak", "chaos", "scaling", "autoscaling", "tracing", "gpu", "peers", "peers-vit-b-32", "peers-vit-l-14"),
        *("first_requests", "small_machine", "many_models", "many_names", "open_clip_versions"),
    ],
)
def test_every_other_benchmark_runs_by_its_name(name: str) -> None:
    assert names(name) == [name]


def test_named_benchmarks_run_in_the_order_of_the_report() -> None:
    assert names("soak", "stages", "--minutes", "5", "transport") == ["transport", "stages", "soak"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no benchmark called nothing"),
        (["stages", "--minutes", "5"], "--minutes is an option of soak"),
        (["soak", "--minutes", "long"], "invalid float value"),
        (["links", "--cell", "1", "2"], "expected 4 arguments"),
    ],
)
def test_a_wrong_command_line_ends_with_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.parsed(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_options_go_to_their_benchmark() -> None:
    order = run.parsed(["soak", "links", "--minutes", "5", "--cell", "5", "200", "300", "4"])
    assert order.options["soak"] == {"minutes": 5.0}
    assert order.options["links"] == {"cell": [5.0, 200.0, 300.0, 4.0]}
    links, soak = order.benchmarks
    assert (order.is_trial(links), order.is_trial(soak)) == (True, False)
    assert all(map(run.parsed(["--quick"]).is_trial, order.benchmarks))


def benchmark(name: str, problem: str = "", **members: Any) -> Benchmark:
    """One that measures nothing."""

    def measure(quick: bool, **options: Any) -> Result:
        return {"quick": quick, "options": options}

    def rows(result: Mapping[str, Any]) -> Table:
        return [["quick"], [str(result["quick"])]]

    return Benchmark(name, name.title(), measure, rows, verdict=lambda _: problem, **members)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the results of these benchmarks go."""
    monkeypatch.setattr(report, "OUT", tmp_path)
    monkeypatch.setattr(report, "TRIALS", tmp_path / "quick")
    monkeypatch.setattr(report.write_results, "__defaults__", (tmp_path / "RESULTS.md", tmp_path))
    return tmp_path


def test_a_verdict_fails_the_command_after_all_have_run(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "BENCHMARKS", (benchmark("bad", "it leaks"), benchmark("good")))
    assert run.main(["good"]) == 0
    assert run.main(["bad", "good"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "bad: it leaks\n"
    assert "written: RESULTS.md" in captured.out
    assert "## Bad" in (out / "RESULTS.md").read_text()
    assert json.loads((out / "good.json").read_text())["environment"]["command"] == "python -m benchmarks.run bad good"


def test_quick_runs_are_stored_separately(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = Option("part", int, ("N",), "only this part", partial=True)
    monkeypatch.setattr(run, "BENCHMARKS", (benchmark("one", options=(part,)),))
    assert run.main(["one", "--quick"]) == 0
    assert run.main(["one", "--part", "3"]) == 0
    assert not (out / "one.json").exists()
    assert json.loads((out / "quick" / "one.json").read_text())["result"] == {"quick": False, "options": {"part": 3}}
    assert "written" not in capsys.readouterr().out


def test_what_this_machine_cannot_measure_is_left_out(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare() -> None:
        raise CannotMeasure("no card")

    monkeypatch.setattr(run, "BENCHMARKS", (benchmark("card", prepare=prepare), benchmark("other")))
    assert run.main(["card"]) == 0
    assert capsys.readouterr().out == "card: no card\n"
    assert run.main(["card", "other"]) == 0
    assert {path.name for path in out.glob("*.json")} == {"other.json", "summary.json"}
