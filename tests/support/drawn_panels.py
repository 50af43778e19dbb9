"""The dashboard's panels, drawn by matplotlib from what Prometheus answers: what they show, not how Grafana looks."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from operations.grafana.panels import Panel, Query, Row

COLUMNS = 3
SCALES = {"bytes": (2**20, "MiB"), "mbytes": (1, "MiB"), "Bps": (2**20, "MiB/s"), "percentunit": (0.01, "%")}
UNITS = {"s": "s", "percent": "%", "reqps": "requests/s", "suffix:/s": "1/s", "short": ""}
Points = list[tuple[float, float]]
Ask = Callable[[str], Iterable[tuple[Mapping[str, str], Points]]]
"""From an expression of a panel to its series: labels, and points of time and value."""


def draw(rows: Iterable[Row], ask: Ask, path: Path) -> None:
    """Writes a picture with all panels that have series, row by row.

    Args:
        rows: of the dashboard.
        ask: gets the series of a query.
        path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(row.title, panel, lines) for row in rows for panel in row.panels if (lines := _lines(panel, ask))]
    height = -(-len(shown) // COLUMNS)
    figure, grid = pyplot.subplots(height, COLUMNS, figsize=(15, 2.3 * height), layout="constrained", squeeze=False)
    start = min(time for _, _, lines in shown for points in lines.values() for time, _ in points)
    for axes, (title, panel, lines) in zip(grid.flat, shown, strict=False):
        _draw(axes, title, panel, lines, start)
    for axes in list(grid.flat)[len(shown) :]:
        axes.axis("off")
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def _lines(panel: Panel, ask: Ask) -> dict[str, Points]:
    return {
        _legend(query, labels): points for query in panel.queries for labels, points in ask(query.expression) if points
    }


def _legend(query: Query, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), query.legend)


def _draw(axes: Any, title: str, panel: Panel, lines: Mapping[str, Points], start: float) -> None:
    scale, unit = SCALES.get(panel.unit) or (1, UNITS[panel.unit])
    for legend, points in lines.items():
        times, values = zip(*points, strict=True)
        axes.plot([time - start for time in times], [value / scale for value in values], ".-", ms=2, lw=1, label=legend)
    axes.set_title(f"{title}  {panel.title}", fontsize=8, loc="left")
    axes.set_ylabel(unit, fontsize=7)
    # The upper third is for the legend.
    axes.set_ylim(0, 1.5 * max(value / scale for points in lines.values() for _, value in points) or 1)
    axes.tick_params(labelsize=6)
    axes.legend(fontsize=5, loc="upper left", ncols=2)
