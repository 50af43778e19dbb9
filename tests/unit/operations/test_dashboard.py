"""`operations/grafana/`: the committed dashboard is the one that its rows make, and shows metrics that there are."""

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from benchmarks.lib.places import ROOT
from operations.grafana import dashboard
from operations.grafana.panels import RATE
from operations.grafana.platform_rows import PLATFORM_ROWS
from operations.grafana.server_rows import SERVER_ROWS
from tests.support.promql import selected, unknown

ROWS = (*SERVER_ROWS, *PLATFORM_ROWS)
PANELS = [panel for row in ROWS for panel in row.panels]
UNITS = {"s", "bytes", "mbytes", "Bps", "percent", "percentunit", "reqps", "suffix:/s", "short"}
LONGEST_LEGEND = 40


def test_the_committed_file_is_what_the_rows_make() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run python -m operations.grafana.dashboard"


def test_grafana_finds_it_again_and_is_told_where_prometheus_is() -> None:
    made = json.loads(dashboard.text())
    assert made["uid"] == "marqo-inference"
    assert [one["name"] for one in made["templating"]["list"]] == ["datasource", "application", "instance"]
    drawn = [panel for panel in made["panels"] if panel["type"] != "row"]
    assert len(drawn) == len(PANELS)
    sources = [one["datasource"]["uid"] for panel in drawn for one in (panel, *panel["targets"])]
    assert set(sources) == {"${datasource}"}
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))


def test_panels_do_not_overlap() -> None:
    places: list[Any] = [panel["gridPos"] for panel in json.loads(dashboard.text())["panels"]]
    assert all(place["x"] + place["w"] <= dashboard.COLUMNS for place in places)
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_has_a_unit_short_legends_and_known_metrics(panel: Any) -> None:
    assert panel.unit in UNITS
    assert panel.meaning.endswith(".")
    for query in panel.queries:
        assert 0 < len(query.legend) <= LONGEST_LEGEND
        assert not unknown(query.expression.replace(RATE, "1m"))


def named_in_the_runbook() -> set[str]:
    _, _, section = (ROOT / "docs" / "operate.md").read_text().partition("\n## Alerts\n")
    text = " ".join(section.partition("\n## ")[0].split())
    places = re.findall(r'\b(?:panels?|row) ("[^"]+"(?:(?:,| and) "[^"]+")*)', text)
    return {title for place in places for title in re.findall(r'"([^"]+)"', place)}


def test_titles_are_those_that_the_runbook_names() -> None:
    """Where docs/operate.md says: the panel "…", the row "…"."""
    titles = {panel.title for panel in PANELS} | {row.title for row in ROWS}
    assert len(titles) == len(PANELS) + len(ROWS)
    named = named_in_the_runbook()
    assert len(named) > 5
    assert named <= titles


def test_alerts_and_dashboard_read_the_same_names() -> None:
    """What alerts fire on can be seen."""
    groups = yaml.safe_load((ROOT / "operations" / "prometheus" / "alerts.yaml").read_text())["groups"]
    alarming = {name for group in groups for rule in group["rules"] for name in selected(rule["expr"])}
    shown = {
        name for panel in PANELS for query in panel.queries for name in selected(query.expression.replace(RATE, "1m"))
    }
    assert alarming - shown == {"up"}


@pytest.mark.parametrize("kind", ["datasources", "dashboards"])
def test_provisioning_files_are_of_the_known_version(kind: str) -> None:
    (file,) = (dashboard.FILE.parent / "provisioning" / kind).iterdir()
    assert yaml.safe_load(file.read_text())["apiVersion"] == 1
