"""`operations/prometheus/`: rules and configs that Prometheus takes, alerts that fire, clear, and are explained."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.lib.places import ROOT
from tests.support.promql import documented, selected, unknown

FOLDER = ROOT / "operations" / "prometheus"
CONFIGS = [FOLDER / "prometheus.yaml", FOLDER / "cluster.yaml"]
HEADING = re.compile(r"^### (Marqo\w+)$", re.MULTILINE)
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: Debian's prometheus")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


RULES: dict[str, Any] = {
    rule["alert"]: rule for group in read(FOLDER / "alerts.yaml")["groups"] for rule in group["rules"]
}


def says(*words: str | Path) -> str:
    """What promtool prints; it must succeed."""
    run = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"SUCCESS: {len(RULES)} rules found" in says("check", "rules", FOLDER / "alerts.yaml")


@promtool
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_prometheus_takes_the_configs(config: Path) -> None:
    assert f"SUCCESS: {len(RULES)} rules found" in says("check", "config", config)


@promtool
def test_alerts_fire_and_clear() -> None:
    assert "SUCCESS" in says("test", "rules", FOLDER / "alerts_test.yaml")


def test_each_alert_has_a_test_in_which_it_fires_and_then_clears() -> None:
    tests = read(FOLDER / "alerts_test.yaml")["tests"]
    cases = {
        name: [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == name]
        for name in RULES
    }
    wrong = [name for name, of_it in cases.items() if [bool(case["exp_alerts"]) for case in of_it][:2] != [True, False]]
    assert not wrong
    assert {case["alertname"] for test in tests for case in test["alert_rule_test"]} == set(RULES)


def test_each_alert_has_its_entry_in_the_runbook_and_each_entry_its_alert() -> None:
    _, _, section = (ROOT / "docs" / "operate.md").read_text().partition("\n## Alerts\n")
    section = section.partition("\n## ")[0]
    assert HEADING.findall(section) == list(RULES)
    for name, text in zip(RULES, HEADING.split(section)[2::2], strict=True):
        severity = RULES[name]["labels"]["severity"]
        assert text.strip().startswith(f"*{severity.capitalize()}.*"), name
        assert re.search(r"^\* Look", text, re.MULTILINE), name
        assert re.search(r"^\* (Look and do|Do): ", text, re.MULTILINE), name


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_on(name: str) -> None:
    rule = RULES[name]
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/operate.md#{name.lower()}"
    assert not unknown(rule["expr"])


def test_metrics_are_read_from_expressions() -> None:
    expression = (
        'sum by (x) (rate(a_total{x="1"}[5m])) / max_over_time(b[5m:1m]) > histogram_quantile(0.9, c) or d offset 5m'
    )
    assert selected(expression) == {"a_total", "b", "c", "d"}
    with pytest.raises(ValueError, match="parenthesis"):
        selected("sum(up")
    assert unknown("ray_marqo_in_flight / no_such_metric") == {"no_such_metric"}
    assert "ray_marqo_in_flight_limit" in documented()
