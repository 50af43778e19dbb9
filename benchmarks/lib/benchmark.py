"""What a benchmark is: how it measures, and what becomes of its result. `benchmarks/run.py` runs every benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
"""What a measurement returns: plain data that JSON can hold."""
Table = list[list[str]]
"""Rows of cells. The first row is the header."""
Figures = dict[str, list[float]]
"""Figures of the summary by name: the values of all runs."""


class CannotMeasure(Exception):
    """This machine lacks something that a benchmark needs. The message says what."""


@dataclass(frozen=True, slots=True)
class Option:
    """A command line option of one benchmark.

    Args:
        name: the keyword argument of `measure`, and `--name` on the command line.
        kind: converts a word of the command line.
        values: names of the option's values, for `--help`. An option with several values is passed as a list.
        help: what it means, for `--help`.
        partial: with this option only a part is measured, so the result is kept where those of quick runs are.
    """

    name: str
    kind: Callable[[str], Any]
    values: tuple[str, ...]
    help: str
    partial: bool = False


def no_figures(_: Mapping[str, Any]) -> Figures:
    """For benchmarks without figures in the summary."""
    return {}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    Args:
        name: on the command line, and of the files with its result.
        title: of its section in RESULTS.md and of its diagram. A changed title starts a new section.
        measure: called as `measure(quick, **options)`, with those of its options that were given.
        rows: the result as a table.
        summary: the result's figures for `summary.json`.
        draw: draws the result into matplotlib's `axes`. None: there is no diagram.
        verdict: a sentence about what is wrong with a result, or an empty text. With a sentence the command fails.
        prepare: called before any benchmark measures. It raises CannotMeasure if this machine lacks something.
        options: of the command line.
        by_default: whether it runs when the command line names no benchmark.
    """

    name: str
    title: str
    measure: Callable[..., Result]
    rows: Callable[[Mapping[str, Any]], Table]
    summary: Callable[[Mapping[str, Any]], Figures] = no_figures
    draw: Callable[[Mapping[str, Any], Any], None] | None = None
    verdict: Callable[[Mapping[str, Any]], str] | None = None
    prepare: Callable[[], object] | None = None
    options: tuple[Option, ...] = ()
    by_default: bool = False
