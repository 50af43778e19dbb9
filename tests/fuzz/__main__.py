"""`python -m tests.fuzz [requests] [images] [texts]`: runs campaigns, prints their figures, keeps what they found."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.archives import Archives
from tests.fuzz.bodies import Bodies
from tests.fuzz.campaign import Report, run
from tests.fuzz.checkpoints import Checkpoints
from tests.fuzz.expanding import Expanding
from tests.fuzz.images import Images
from tests.fuzz.repositories import Repositories
from tests.fuzz.scans import Scans
from tests.fuzz.target import Target, in_subprocess, minimised
from tests.fuzz.texts import Texts
from tests.fuzz.trap import Trap

EXECUTIONS = {
    "requests": 1_000_000,
    "images": 200_000,
    "texts": 50_000,
    "archives": 100_000,
    "checkpoints": 100_000,
    "repositories": 100_000,
    "scans": 100_000,
    "expanding": 100_000,
}


def main() -> int:
    """Returns 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(EXECUTIONS)}; without any, all")
    parser.add_argument("--executions", type=int, help=f"of each target; without it, {EXECUTIONS}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes side by side")
    parser.add_argument("--replay", action="store_true", help="only run again what is kept in the corpus")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="where to put what found something")
    options = parser.parse_args()
    known = (Bodies(), Images(), Texts(), Archives(), Checkpoints(), Repositories(), Scans(), Expanding(), Trap())
    targets = [target for target in known if target.name in (options.targets or EXECUTIONS)]
    if options.replay:
        return min(1, sum(_replay(target) for target in targets))
    found = 0
    for target in targets:
        report = run(target, options.executions or EXECUTIONS[target.name], options.seed, options.workers)
        print(report, flush=True)
        _keep(target, report, options.findings)
        found += len(report.tally.findings)
    return min(1, found)


def _replay(target: Target) -> int:
    found = 0
    for name, data in corpus.kept(target.name).items():
        finding = in_subprocess(target, data).finding
        found += bool(finding)
        print(f"{target.name}/{name}: {finding or 'good'}")
    return found


def _keep(target: Target, report: Report, folder: Path) -> None:
    for index in report.tally.findings:
        data = target.make(report.seed, index)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{target.name}-{report.seed}-{index}"
        path.write_bytes(data)
        print(f"  kept {path}", flush=True)
        path.with_suffix(".small").write_bytes(minimised(target, data))


if __name__ == "__main__":
    sys.exit(main())
