"""What a dashboard consists of, as plain data, and the queries that its panels are made of.

`$application` and `$instance` are chosen in Grafana; `instance` is Prometheus's name of what it has read: a node of
Ray, or its HAProxy.
"""

from dataclasses import dataclass

RATE = "$__rate_interval"
"""Grafana's: as short as the interval of scraping allows."""
APP = 'application=~"$application"'
NODE = 'instance=~"$instance"'


@dataclass(frozen=True)
class Query:
    """Lines of a panel.

    Args:
        expression: PromQL.
        legend: name of each of its lines; labels in double braces.
    """

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A question's answer, drawn.

    Args:
        title: what is shown.
        unit: of Grafana, such as `s`, `bytes`, `percentunit` (1 is 100 %).
        queries: what is drawn.
        meaning: how to read it, shown beside the title.
        most: the upper end of the scale, if it is fixed.
        red: a value that is alarming from there on (`from`) or below (`below`).
        stacked: lines are put on top of each other.
        stat: a number for each series instead of lines.
        names: values that are shown as words.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    meaning: str
    most: float | None = None
    red: tuple[str, float] | None = None
    stacked: bool = False
    stat: bool = False
    names: tuple[tuple[int, str], ...] = ()

    @property
    def width(self) -> int:
        """In columns, of which the dashboard has 24."""
        return 4 if self.stat else 8

    @property
    def height(self) -> int:
        """In Grafana's units of 38 pixels."""
        return 4 if self.stat else 8


@dataclass(frozen=True)
class Row:
    """A question, and the panels that answer it.

    Args:
        title: the question that it answers.
        panels: from left to right.
    """

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str, labels: str = "") -> str:
    """Growth of a counter in a second."""
    return f"sum by ({by}) (rate({metric}{{{APP}{labels and ', ' + labels}}}[{RATE}]))"


def quantile(part: float, metric: str, by: str, labels: str) -> str:
    """The value below which a part of a histogram's values is, over all replicas."""
    return f"histogram_quantile({part}, {rate(f'{metric}_bucket', f'{by}, le' if by else 'le', labels)})"


def total(metric: str, by: str, labels: str = "") -> str:
    """A gauge's sum over all replicas."""
    return f"sum by ({by}) ({metric}{{{APP}{labels and ', ' + labels}}})"
