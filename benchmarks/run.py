"""Runs benchmarks, one after the other: `python -m benchmarks.run [--quick] [NAME ...]`; all names with `--help`.

JSON goes to benchmarks/out, diagrams to benchmarks/results, tables to benchmarks/RESULTS.md, and the most important
figures to benchmarks/out/summary.json. A quick run is for trying something out: all that it writes, its own summary
too, goes to benchmarks/out/quick. The exit status is 1 if a benchmark's verdict says that something is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import (
    autoscaling,
    batching,
    chaos,
    encoding,
    first_requests,
    gpu,
    latency,
    links,
    many_models,
    many_names,
    open_clip_versions,
    overload,
    pipeline,
    scaling,
    shapes,
    small_machine,
    soak,
    stages,
    tracing,
    transport,
    waiting,
)
from benchmarks.lib import report
from benchmarks.lib.benchmark import Benchmark, CannotMeasure
from benchmarks.peers import comparison
from operations import environment
from operations.errors import StartError

BENCHMARKS: tuple[Benchmark, ...] = (
    transport.BENCHMARK,
    stages.BENCHMARK,
    encoding.BENCHMARK,
    pipeline.BENCHMARK,
    latency.BENCHMARK,
    batching.BENCHMARK,
    shapes.BENCHMARK,
    links.BENCHMARK,
    waiting.BENCHMARK,
    overload.BENCHMARK,
    comparison.SMALL,
    comparison.VIT_B_32,
    comparison.VIT_L_14,
    gpu.BENCHMARK,
    soak.BENCHMARK,
    chaos.BENCHMARK,
    scaling.BENCHMARK,
    autoscaling.BENCHMARK,
    tracing.BENCHMARK,
    first_requests.BENCHMARK,
    small_machine.BENCHMARK,
    many_models.BENCHMARK,
    many_names.BENCHMARK,
    open_clip_versions.BENCHMARK,
)
"""In the order in which they run, and of their sections in RESULTS.md."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line asks for.

    Args:
        benchmarks: in the order in which they run.
        quick: short versions of them.
        options: of each benchmark, by its name, the options that were given.
        command: as it was typed.
    """

    benchmarks: tuple[Benchmark, ...]
    quick: bool
    options: Mapping[str, Mapping[str, Any]]
    command: str

    def is_trial(self, benchmark: Benchmark) -> bool:
        """Whether the result does not belong into RESULTS.md."""
        given = self.options[benchmark.name]
        return self.quick or any(option.partial and option.name in given for option in benchmark.options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for and brings RESULTS.md up to date; returns the exit status."""
    order = parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        environment.apply()
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # All of them first: installing what one needs must not take place between the measurements of others.
    able = [benchmark for benchmark in order.benchmarks if _is_able(benchmark)]
    problems = [problem for benchmark in able if (problem := _run(benchmark, order))]
    if not all(order.is_trial(benchmark) for benchmark in able):
        print(f"written: {report.write_results(BENCHMARKS).name}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def parsed(arguments: Sequence[str]) -> Order:
    """What a command line asks for. Ends the process, as argparse does, if it is not understood."""
    parser = _parser()
    given = parser.parse_intermixed_args(arguments)
    names = set(given.names or [one.name for one in BENCHMARKS if one.by_default])
    if unknown := names - {one.name for one in BENCHMARKS}:
        parser.error(f"there is no benchmark called {', '.join(sorted(unknown))}")
    options: dict[str, dict[str, Any]] = {}
    for benchmark in BENCHMARKS:
        values = {option.name: getattr(given, option.name) for option in benchmark.options}
        options[benchmark.name] = {name: value for name, value in values.items() if value is not None}
        if options[benchmark.name] and benchmark.name not in names:
            parser.error(f"--{next(iter(options[benchmark.name]))} is an option of {benchmark.name}")
    chosen = tuple(benchmark for benchmark in BENCHMARKS if benchmark.name in names)
    return Order(chosen, given.quick, options, " ".join(["python -m benchmarks.run", *arguments]))


def _parser() -> argparse.ArgumentParser:
    by_default = ", ".join(one.name for one in BENCHMARKS if one.by_default)
    others = ", ".join(one.name for one in BENCHMARKS if not one.by_default)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Runs benchmarks, one after the other.",
        epilog=f"Without names: {by_default}. Only by their names: {others}.",
    )
    parser.add_argument("--quick", action="store_true", help="a short version of everything, which changes no results")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks to run")
    for benchmark in BENCHMARKS:
        for option in benchmark.options:
            several = len(option.values) > 1
            parser.add_argument(
                f"--{option.name}",
                type=option.kind,
                nargs=len(option.values) if several else None,
                metavar=option.values if several else option.values[0],
                help=f"{benchmark.name}: {option.help}",
            )
    return parser


def _is_able(benchmark: Benchmark) -> bool:
    """Prepares a benchmark. Says why if this machine cannot run it."""
    try:
        if benchmark.prepare is not None:
            benchmark.prepare()
    except CannotMeasure as reason:
        print(f"{benchmark.name}: {reason}")
        return False
    return True


def _run(benchmark: Benchmark, order: Order) -> str:
    """Runs one benchmark; returns what its verdict says is wrong."""
    given = order.options[benchmark.name]
    record = report.run(benchmark, order.quick, given, order.command, order.is_trial(benchmark))
    problem = benchmark.verdict(record["result"]) if benchmark.verdict is not None else ""
    return problem and f"{benchmark.name}: {problem}"


if __name__ == "__main__":
    sys.exit(main())
