"""Imports of the benchmarks: which way they point, and that they change nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from benchmarks.lib.places import ROOT

FOLDER = ROOT / "benchmarks"
OUTSIDE = ("out/", "peers/plain_server.py", "peers/bento_service.py", "peers/towers.py")
"""Not modules of this package: they run in environments of their own."""


def modules() -> dict[str, Path]:
    """Every module of the package, with its file."""
    paths = [path for path in FOLDER.rglob("*.py") if not str(path.relative_to(FOLDER)).startswith(OUTSIDE)]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return dict(zip(names, paths, strict=True))


def imported(path: Path) -> set[str]:
    """What a file imports, anywhere in it: names of modules, and of what may be modules within them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_there_is_no_circle() -> None:
    known = modules()
    graph = {name: {other for other in imported(path) if other in known} for name, path in known.items()}
    packages = {"benchmarks", "benchmarks.lib", "benchmarks.peers"}
    tuple(TopologicalSorter({name: others - packages for name, others in graph.items()}).static_order())


def test_what_is_shared_imports_no_measurement() -> None:
    for name, path in modules().items():
        ours = {other for other in imported(path) if other in modules()}
        if name.startswith("benchmarks.lib"):
            assert {other for other in ours if not other.startswith("benchmarks.lib")} <= {"benchmarks"}, name
        assert "benchmarks.run" not in ours, name


def test_nothing_comes_from_the_tests() -> None:
    for name, path in modules().items():
        assert not {other for other in imported(path) if other.partition(".")[0] == "tests"}, name


def test_importing_the_command_changes_no_environment_and_imports_neither_ray_nor_torch() -> None:
    script = (
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "import benchmarks.run\n"
        "assert dict(os.environ) == before\n"
        "assert not {'ray', 'torch'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)
