"""`python -m benchmarks.run [--quick] [NAME ...]`: our own benchmarks, one after the other, or those that are named.

JSON goes to benchmarks/out, pictures to benchmarks/results, tables to benchmarks/RESULTS.md, and the figures that
matter most to benchmarks/out/summary.json. A quick run is for trying things out: all it writes, its own summary too,
goes to benchmarks/out/quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks import batching, latency, links, overload, pipeline, shapes, stages, transport, waiting
from benchmarks.lib import report

OURS = (transport, stages, pipeline, latency, batching, shapes, links, waiting, overload)


def run(benchmarks: Sequence[Any]) -> None:
    """Measures what the command line asks for, and brings RESULTS.md up to date."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a small version of everything")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {benchmark.NAME for benchmark in benchmarks}
    if unknown:
        parser.error(f"there is no benchmark called {', '.join(sorted(unknown))}")
    for benchmark in benchmarks:
        if not arguments.names or benchmark.NAME in arguments.names:
            report.run(benchmark, arguments.quick, report.command_line())
    if not arguments.quick:
        print(f"written: {report.write_results(everything()).name}")


def everything() -> list[Any]:
    """All benchmarks that RESULTS.md may hold, in its order."""
    from benchmarks import chaos, gpu, soak
    from benchmarks.peers.comparison import SMALL, VIT_B_32

    return [*OURS, SMALL, VIT_B_32, gpu, soak, chaos]


if __name__ == "__main__":
    run(OURS)
