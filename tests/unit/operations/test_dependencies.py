"""What the server imports, pyproject.toml declares, and docs/operate.md says what each package is for."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks.lib.places import ROOT

LAYERS = ("embedding", "deployments", "graph", "operations", "demo")
"""What is installed and runs: without benchmarks and tests, whose packages are those of the extra `dev`."""
OWN_EXTRAS = ("onnx", "s3", "tracing")
IMPORTERS = ("import_module", "find_spec")
"""Functions of importlib that take the name of a module."""


def sources() -> list[Path]:
    files = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    return sorted([*files, ROOT / "graph.py"])


def imported(source: str) -> set[str]:
    """Top-level names of the modules that a source imports anywhere but for type checkers alone."""
    tree = ast.parse(source)
    ignored = {id(node) for block in ast.walk(tree) if is_for_checkers(block) for node in ast.walk(block)}
    return {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if id(node) not in ignored
        for name in modules_of(node)
        if name
    }


def is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def modules_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "" if node.level else node.module or ""
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in IMPORTERS:
        yield from (one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import yaml", {"yaml"}),
        ("def f():\n    from botocore.config import Config", {"botocore"}),
        ("import importlib\nimportlib.import_module('onnxruntime.capi')", {"importlib", "onnxruntime"}),
        ("from . import a\nfrom .b import c", set()),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rich", {"typing"}),
    ],
)
def test_imports_are_found(source: str, names: set[str]) -> None:
    assert imported(source) == names


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def name_of(requirement: str) -> str:
    """`ray[serve]>=2.60` is ray."""
    found = re.match(r"\s*([\w.-]+)", requirement)
    assert found is not None, requirement
    return canonical(found[1])


@cache
def declared() -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in OWN_EXTRAS)
    return frozenset(map(name_of, [*project["dependencies"], *(one for extra in extras for one in extra)]))


def test_what_is_imported_is_declared() -> None:
    """Directly, and not only by a package that needs it today and may do without it tomorrow."""
    distributions = packages_distributions()
    wrong = []
    for path in sources():
        for module in sorted(imported(path.read_text()) - sys.stdlib_module_names - set(LAYERS)):
            packages = {canonical(package) for package in distributions.get(module, [module])}
            if not packages & declared():
                wrong.append(f"{path.relative_to(ROOT)} imports {module}, of {', '.join(sorted(packages))}")
    assert not wrong, "\n".join(wrong)


def test_what_is_declared_has_its_reason() -> None:
    """In the first column of the table in docs/operate.md, section Dependencies."""
    _, _, section = (ROOT / "docs" / "operate.md").read_text().partition("\n## Dependencies\n")
    cells = re.findall(r"^\| ([^|]+) \|", section.partition("\n## ")[0], re.MULTILINE)
    explained = {name_of(name) for cell in cells for name in re.sub(r"\([^)]*\)", "", cell).split(",")}
    assert "ray" in explained
    missing = sorted(declared() - explained)
    assert not missing, f"no reason in docs/operate.md for {', '.join(missing)}"
