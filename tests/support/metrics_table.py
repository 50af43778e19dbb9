"""The table of metrics in docs/operate.md, as data."""

import re
from typing import NamedTuple

from benchmarks.lib.places import ROOT

_NAME = re.compile(r"`([^`]+)`")


class Metric(NamedTuple):
    """A row: its kind, and the values of each of its tags; None for names of models."""

    kind: str
    tags: dict[str, set[str] | None]


def documented() -> dict[str, Metric]:
    """The metrics by the names that Prometheus sees, without a histogram's suffixes."""
    text = (ROOT / "docs" / "operate.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    found: dict[str, Metric] = {}
    for line in text.splitlines():
        if not line.startswith("| `ray_marqo_"):
            continue
        _, names, kind, tags, _, _ = (cell.strip() for cell in line.split("|"))
        for name in _NAME.findall(names):
            found[name] = Metric(kind, _tags(tags))
    return found


def _tags(cell: str) -> dict[str, set[str] | None]:
    """From `tag`: `value`, `value`; `tag`: names of models."""
    found: dict[str, set[str] | None] = {}
    for part in filter(None, cell.split("; ")):
        name, _, values = part.partition(": ")
        found[name.strip("`")] = set(_NAME.findall(values)) or None
    return found
