"""Writes the dashboard for Grafana: builds its JSON from rows of panels.

    python -m operations.grafana.dashboard

Rewrites `marqo-inference.json` beside this file, which is committed: Grafana reads it, and nobody edits it by hand.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from operations.grafana.panels import Panel, Row
from operations.grafana.platform_rows import PLATFORM_ROWS
from operations.grafana.server_rows import SERVER_ROWS

FILE = Path(__file__).with_name("marqo-inference.json")
UID = "marqo-inference"
SCHEMA_VERSION = 42
"""Of Grafana 12; later ones raise it when they read the file."""
COLUMNS = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(rows: Iterable[Row]) -> dict[str, Any]:
    """The dashboard as Grafana's JSON model.

    Args:
        rows: from top to bottom.
    """
    panels = list(_placed(rows))
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "uid": UID,
        "title": "Marqo inference on Ray Serve",
        "description": "docs/operate.md, section Dashboard, says how to read it.",
        "tags": ["marqo", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # a crosshair that all panels share
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "timezone": "browser",
        "templating": {"list": [_datasource(), *_variables()]},
        "annotations": {"list": [_alerts()]},
        "panels": panels,
    }


def _placed(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Panels with their places: a line below each title, filled from the left, then the next line."""
    y = 0
    for row in rows:
        yield {"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _place(0, y, COLUMNS, 1)}
        x, y = 0, y + 1
        height = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            height = panel.height
            yield _drawn(panel) | {"gridPos": _place(x, y, panel.width, height)}
            x += panel.width
        y += height


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _drawn(panel: Panel) -> dict[str, Any]:
    return {
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "range": not panel.stat,
                "instant": panel.stat,
            }
            for i, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _stat_options() if panel.stat else _graph_options(),
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit, "min": 0, "mappings": _mappings(panel)}
    if panel.most is not None:
        field["max"] = panel.most
    if panel.red is not None:
        field["thresholds"] = {"mode": "absolute", "steps": _steps(panel.red)}
        field["color"] = {"mode": "thresholds"} if panel.stat else {"mode": "palette-classic"}
    if not panel.stat:
        field["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "off" if panel.red is None else "line"},
        }
    return field


def _steps(red: tuple[str, float]) -> list[dict[str, Any]]:
    """Green, and red from a value on, or below it."""
    side, value = red
    below, above = ("green", "red") if side == "from" else ("red", "green")
    return [{"color": below, "value": None}, {"color": above, "value": value}]


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    names = {str(value): {"text": text, "index": i} for i, (value, text) in enumerate(panel.names)}
    return [{"type": "value", "options": names}] if names else []


def _graph_options() -> dict[str, Any]:
    return {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _stat_options() -> dict[str, Any]:
    return {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "graphMode": "none",
        "colorMode": "value",
        "textMode": "value_and_name",
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variables() -> Iterator[dict[str, Any]]:
    for name, query in (
        ("application", "label_values(ray_marqo_in_flight_limit, application)"),
        ("instance", "label_values(ray_node_cpu_count, instance)"),
    ):
        yield {
            "name": name,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # when the time range changes
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }


def _alerts() -> dict[str, Any]:
    """A mark where one of this project's alerts began to fire."""
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "expr": 'ALERTS{alertname=~"Marqo.+", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "iconColor": "red",
    }


def text() -> str:
    """The content of the committed file."""
    return json.dumps(dashboard((*SERVER_ROWS, *PLATFORM_ROWS)), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
