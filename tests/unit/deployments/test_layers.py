"""What may import what, read from the source of every module: nothing is run but four imports, in a subprocess."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from benchmarks.lib.places import ROOT

LAYERS = ("embedding", "deployments", "graph", "operations", "demo", "benchmarks", "tests")
"""From the bottom to the top. A layer may import itself and the layers before it."""
WITHOUT_TORCH = ("embedding.image_spec", "embedding.protocol", "embedding.batching", "embedding.registry")
PLAIN_DATA = {"deployments.encoder.loaded", "deployments.encoder.settings", "deployments.preprocessor.parts"}
"""Modules of the other two deployments that say what is sent between them and the ingress."""
RAY_INTERNALS = "deployments/ray_internals.py"
RAYS_TEMPLATE = "tests/unit/operations/test_haproxy_config.py"
"""A program in it renders Ray's own HAProxy template, which nothing public gives."""
OF_OTHERS = {
    "_exit",  # os
    "_use_new_zipfile_serialization",  # torch, which documents it
    "_embeds",  # the next three: open_clip
    "_MODEL_CONFIGS",
    "_PRETRAINED",
    "_raw_stream",  # botocore
}
"""Private names of other libraries than Ray."""
PRIVATE_MODULE = re.compile(r"\bray(?:\.\w+)*\._\w+")


@cache
def parsed() -> dict[str, ast.Module]:
    """The source files, by path from the repository's root."""
    files = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")]
    files += [ROOT / f"{layer}.py" for layer in LAYERS if (ROOT / f"{layer}.py").is_file()]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(files)}


@cache
def nodes(path: str) -> list[ast.AST]:
    return list(ast.walk(parsed()[path]))


@cache
def imports(path: str) -> list[str]:
    """Dotted names that a file imports anywhere, also within functions: `a.b` and `a.b.c` for `from a.b import c`."""
    package = Path(path).parts[:-1]
    found: list[str] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            found += [source, *(f"{source}.{name.name}" for name in node.names)]
    return found


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_every_layer_has_files() -> None:
    """Or else nothing below would be looked at."""
    assert {Path(path).parts[0].removesuffix(".py") for path in parsed()} == set(LAYERS)
    assert len(parsed()) > 200


def test_imports_point_down_only() -> None:
    wrong = [
        f"{path} imports {module}"
        for path in parsed()
        for module in imports(path)
        for layer in LAYERS[LAYERS.index(Path(path).parts[0].removesuffix(".py")) + 1 :]
        if is_within(module, layer)
    ]
    assert wrong == []


def test_no_test_file_is_imported() -> None:
    """What test files share is in tests/support; fixtures of a conftest are asked for by their names."""
    wrong = [
        f"{path} imports {module}"
        for path in parsed()
        for module in imports(path)
        if any(part.startswith("test_") or part == "conftest" for part in module.split(".")[1:])
        and is_within(module, "tests")
    ]
    assert wrong == []
    assert not any("conftest" in module.split(".") for path in parsed() for module in imports(path))


def test_packages_are_empty() -> None:
    """What a package's __init__ does is done on the import of any of its modules."""
    packages = {path: tree for path, tree in parsed().items() if Path(path).name == "__init__.py"}
    assert len(packages) > 20
    with_content = {path: tree for path, tree in packages.items() if tree.body}
    assert set(with_content) <= {"tests/fuzz/__init__.py"}
    assert all(len(tree.body) == 1 and ast.get_docstring(tree) for tree in with_content.values())


def loaded_with(*modules: str) -> set[str]:
    """All modules that a new process has once it has imported these."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.split())


def test_what_the_ingress_needs_of_the_library_loads_no_torch() -> None:
    assert not {"torch", "ray"} & loaded_with(*WITHOUT_TORCH)


def test_the_ingress_loads_no_torch() -> None:
    """Of whose memory each replica of it would take some hundred megabytes."""
    assert "torch" not in loaded_with("deployments.ingress.ingress")


def test_who_builds_the_graph_or_decodes_with_pillow_loads_no_torch() -> None:
    """The launcher and Serve's building task would take half a gigabyte and seconds of a start for it, a preprocessor
    and each of its decoders as much as that without using it."""
    assert "torch" not in loaded_with("graph", "operations.launch", "deployments.preprocessor.preprocessor")


def test_the_library_does_not_know_ray() -> None:
    files = [path for path in parsed() if path.startswith("embedding/")]
    assert [path for path in files if any(is_within(module, "ray") for module in imports(path))] == []


def test_deployments_know_of_each_other_what_they_send() -> None:
    def known(deployment: str, other: str) -> set[str]:
        files = [path for path in parsed() if path.startswith(f"deployments/{deployment}/")]
        assert files
        package = f"deployments.{other}"
        # `from a.b import c` gives both `a.b`, which may be a module, and `a.b.c`, which may be.
        found = {module for path in files for module in imports(path) if is_within(module, package)}
        modules = {path.removesuffix(".py").replace("/", ".") for path in parsed()}
        return {module if module in modules else module.rpartition(".")[0] for module in found} - {package}

    for other in ("encoder", "preprocessor"):
        assert known("ingress", other) <= PLAIN_DATA
        assert known(other, "ingress") == set()
    assert known("encoder", "preprocessor") == known("preprocessor", "encoder") == set()


# --- The environment ---

CHANGES = {"update", "setdefault", "pop", "clear", "popitem", "__setitem__", "__delitem__"}


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """What runs when a module is imported: everything but the bodies of functions and lambdas."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*node.decorator_list, *node.args.defaults, *(each for each in node.args.kw_defaults if each)]
        elif not isinstance(node, ast.Lambda):
            yield node
            waiting += ast.iter_child_nodes(node)


def changes_environment(node: ast.AST) -> bool:
    """Whether a single statement or call does so: an assignment, a deletion, a method of `os.environ`, `os.putenv`."""
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            return any(is_environment(inner) for target in targets for inner in ast.walk(target))
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return any(is_environment(inner) for inner in ast.walk(target))
        case ast.Call(func=ast.Attribute(value=owner, attr=name)):
            return (is_environment(owner) and name in CHANGES) or name in ("putenv", "unsetenv")
        case ast.Call(func=ast.Name(id=name)):
            return name in ("putenv", "unsetenv")
    return False


def is_environment(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb")) or (
        isinstance(node, ast.Name) and node.id in ("environ", "environb")
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.environ['A'] = '1'", True),
        ("del os.environ['A']", True),
        ("os.environ |= {}", True),
        ("if True:\n    environ.setdefault('A', '1')", True),
        ("class A:\n    os.environ.update(a=1)", True),
        ("os.putenv('A', '1')", True),
        ("def f(a=os.environ.pop('A')): ...", True),
        ("A = os.environ.get('A'); B = os.environ['B']; C = {**os.environ, 'D': '1'}", False),
        ("def f():\n    os.environ['A'] = '1'", False),
    ],
)
def test_a_change_of_the_environment_is_seen(code: str, expected: bool) -> None:
    assert any(map(changes_environment, at_import(ast.parse(code).body))) is expected


def test_importing_a_module_does_not_change_the_environment() -> None:
    changing = [path for path, tree in parsed().items() if any(map(changes_environment, at_import(tree.body)))]
    assert changing == []


# --- Private names of Ray ---


@cache
def private_names(path: str) -> set[str]:
    """Attributes of other objects, arguments and imported names of a file that begin with one underscore."""
    found: set[str] = set()
    for node in nodes(path):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) | ast.alias(name=name):
                found.add(name)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def modules_and_strings(path: str) -> Iterator[str]:
    """Where a private module of Ray may be named: imports, dotted names, and strings, which may be programs."""
    yield from imports(path)
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def own_names() -> set[str]:
    """Names that some file of ours gives to something."""
    found: set[str] = set()
    for path in parsed():
        for node in nodes(path):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Name(id=name) | ast.arg(arg=name):
                    found.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                    found.add(name)
    return found


def test_private_names_of_ray_are_in_one_file() -> None:
    rays = private_names(RAY_INTERNALS)
    assert {"_by_reference", "_run_router_in_separate_loop"} <= rays
    others = [path for path in parsed() if path not in (RAY_INTERNALS, RAYS_TEMPLATE)]
    assert {path: names for path in others if (names := private_names(path) & rays)} == {}
    assert [path for path in others if any(map(PRIVATE_MODULE.search, modules_and_strings(path)))] == []
    # Names of Ray that RAY_INTERNALS does not use either: no private name is left whose owner is not known.
    known = own_names() | OF_OTHERS
    assert {path: names for path in others if (names := private_names(path) - known)} == {}
