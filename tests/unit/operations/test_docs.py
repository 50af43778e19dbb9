"""What documents and comments name is there: links, files, tests, modules, make targets, sections of the protocol."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks.lib.places import ROOT

CODE = ("embedding", "deployments", "operations", "demo", "benchmarks", "tests")
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
DOCUMENTS = sorted([path for name in TOP if (path := ROOT / name).is_file()] + list((ROOT / "docs").rglob("*.md")))
SOURCES = sorted([ROOT / "graph.py", *(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))])
CONFIGS = sorted([ROOT / "Makefile", *(ROOT / "config").iterdir()])
MAPPED = ("embedding", "deployments", "operations")
"""Folders of which docs/architecture.md has a line for each module."""

FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)>\s]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}[ \t]+(.*?)[ \t]*#*$", re.MULTILINE)
HTML_ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")

_FOLDERS = "|".join((*CODE, "docs", "config"))
PATH = re.compile(rf"(?<![\w/.:-])(?:{_FOLDERS})/[\w./*-]+\.(?:py|md|yaml|cfg|json|png|toml)\b")
"""A file of this repository, in prose or in a comment."""
QUOTED_PATH = re.compile(rf"`((?:{_FOLDERS})/[\w./*-]*)(?:::\w+)*`")
"""The same in backticks, where it may be a folder or a file without an ending."""
NO_PATHS = ("benchmarks/out", "demo/clip")
"""A folder that comes into being when something is run, and the name of a model."""
TEST = re.compile(r"(?<![\w./*-])((?:tests/)?(?:[\w-]+/)*test_[\w*]+\.py)(?:::([\w*]+))?")
MODULE = re.compile(rf"python3? -m ((?:{'|'.join(CODE)})(?:\.\w+)*)")
TARGET = re.compile(r"`(?:\w+=\S+ )*make((?: [a-z][a-z-]*)+)")

SECTIONS = re.compile(
    r"docs/protocol\.md,[\s#]+sections?[\s#]+(\d+(?:\.\d+)*(?:(?:,|,?[\s#]+and|,?[\s#]+to)[\s#]+\d+(?:\.\d+)*)*)"
)
NUMBER = re.compile(r"\d+(?:\.\d+)*")
DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
PROCESSOR = re.compile(r"\b(?:EPYC|Xeon)\b")
FREE_OF_RULES = ("benchmarks/",)
"""Where dates and names of processors belong, beside CHANGELOG.md."""


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def commentary(path: Path) -> str:
    """Comments and docstrings of a Python file, and strings that stand alone below a name, one after the other."""
    source = text_of(path)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    # Lines of one comment together, as a citation may go on in the next.
    parts = ["\n".join(token.string for token in tokens if token.type == tokenize.COMMENT)]
    alone = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr)]
    parts += [value.value for value in alone if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    return "\n\n".join(parts)


def prose(path: Path) -> str:
    return commentary(path) if path.suffix == ".py" else text_of(path)


def without_code(text: str) -> str:
    return INLINE_CODE.sub("", FENCE.sub("", text))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a document's headings, by GitHub's rule, and those that it sets itself."""
    text = FENCE.sub("", text_of(path))
    seen: Counter[str] = Counter()
    found: set[str] = set(HTML_ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        anchor = slug(heading)
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return frozenset(found)


def slug(heading: str) -> str:
    """A heading without its markup, in small letters, without punctuation, its blanks as hyphens."""
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Why HAProxy is there", "why-haproxy-is-there"),
        ("2. Request schema of `/vectorise`", "2-request-schema-of-vectorise"),
        ("5. Destination guard (SSRF)", "5-destination-guard-ssrf"),
        ("`embedding/`: a library without Ray", "embedding-a-library-without-ray"),
        ("Measured with Marqo's own client – and native code", "measured-with-marqos-own-client--and-native-code"),
        ("[A link](x.md) and *emphasis*, `snake_case`", "a-link-and-emphasis-snake_case"),
    ],
)
def test_anchors_are_githubs(heading: str, anchor: str) -> None:
    assert slug(heading) == anchor


def test_there_is_something_to_check() -> None:
    assert {"README.md", "docs/protocol.md", "docs/architecture.md", "docs/reliability.md"} <= set(
        map(shown, DOCUMENTS)
    )
    assert len(SOURCES) > 200
    assert "Licence" not in commentary(Path(__file__))  # strings of the code are no comments
    assert "Anchors of a document's headings" in commentary(Path(__file__))


# --- Documents ---


def trouble(document: Path, target: str) -> str | None:
    """What is wrong with a link, or None."""
    place, _, anchor = unquote(target).partition("#")
    file = (document.parent / place).resolve() if place else document
    if not file.is_relative_to(ROOT) or not file.exists():
        return "no such file"
    if anchor and file.suffix == ".md" and anchor not in anchors(file):
        return "no such heading"
    return None


def test_links_lead_somewhere() -> None:
    wrong = [
        f"{shown(document)}: {target}: {reason}"
        for document in DOCUMENTS
        for pair in LINK.findall(without_code(text_of(document)))
        if (target := pair[0] or pair[1]) and not re.match(r"[a-z][a-z0-9+.-]*:", target)
        if (reason := trouble(document, target))
    ]
    assert not wrong, "\n".join(wrong)


def files_called(name: str) -> list[Path]:
    """Test files of a name, with its folder or without, or of a pattern."""
    if name.startswith("tests/"):
        return sorted(ROOT.glob(name))
    return sorted((ROOT / "tests").rglob(name))


def defines(file: Path, function: str) -> bool:
    pattern = re.escape(function).replace(r"\*", r"\w*")
    return re.search(rf"\bdef {pattern}\(", text_of(file)) is not None


def missing_tests(text: str) -> Iterator[str]:
    for name, function in TEST.findall(text):
        files = files_called(name)
        if not files:
            yield name
        elif function and not any(defines(file, function) for file in files):
            yield f"{name}::{function}"


def test_tests_that_documents_name_are_there() -> None:
    wrong = [f"{shown(document)}: {name}" for document in DOCUMENTS for name in missing_tests(text_of(document))]
    assert not wrong, "\n".join(wrong)


def test_modules_and_targets_that_documents_name_are_there() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of(ROOT / "Makefile"), re.MULTILINE))
    wrong = []
    for document in DOCUMENTS:
        for name in MODULE.findall(text_of(document)):
            module = ROOT.joinpath(*name.split("."))
            if not module.with_suffix(".py").is_file() and not (module / "__main__.py").is_file():
                wrong.append(f"{shown(document)}: python -m {name}")
        for names in TARGET.findall(text_of(document)):
            wrong += [f"{shown(document)}: make {name}" for name in names.split() if name not in targets]
    assert not wrong, "\n".join(wrong)


def test_the_map_names_every_module() -> None:
    """docs/architecture.md has a line for each; an empty file is none."""
    document = ROOT / "docs" / "architecture.md"
    linked = {(document.parent / place.partition("#")[0]).resolve() for place, _ in LINK.findall(text_of(document))}
    modules = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in MAPPED and path.stat().st_size]
    wrong = [shown(path) for path in modules if path not in linked]
    assert not wrong, "\n".join(wrong)


# --- Documents and code ---


def exists(path: str) -> bool:
    if path.startswith(NO_PATHS):
        return True
    return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


def test_paths_that_are_named_exist() -> None:
    wrong = []
    for file in (*DOCUMENTS, *CONFIGS, *SOURCES):
        named = {*PATH.findall(prose(file))}
        if file.suffix == ".md":
            named |= {path for path in QUOTED_PATH.findall(text_of(file)) if path.strip("/") not in CODE}
        wrong += [f"{shown(file)}: {path}" for path in sorted(named) if not exists(path)]
    assert not wrong, "\n".join(wrong)


def cited(text: str) -> Iterator[str]:
    """Sections of docs/protocol.md that a text names; of a range, its ends."""
    for numbers in SECTIONS.findall(text):
        yield from NUMBER.findall(numbers)


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("docs/protocol.md, section 5, and then some.", ["5"]),
        ("docs/protocol.md, sections 1.2 to 1.5, 2 and 3. Both", ["1.2", "1.5", "2", "3"]),
        ("docs/protocol.md, sections 5 and 7.1; RFC 9110, section 14", ["5", "7.1"]),
        ("(docs/protocol.md,\n    section 3.4)", ["3.4"]),
        ("# docs/protocol.md,\n# section 3.4.", ["3.4"]),
        ("docs/protocol.md lists those of the first two", []),
    ],
)
def test_citations_are_read(text: str, sections: list[str]) -> None:
    assert list(cited(text)) == sections


def test_sections_that_are_cited_exist() -> None:
    protocol = text_of(ROOT / "docs" / "protocol.md")
    sections = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)*)[. ]", protocol, re.MULTILINE))
    assert len(sections) > 40
    citations = {shown(file): list(cited(prose(file))) for file in (*SOURCES, *DOCUMENTS)}
    citations["docs/protocol.md"] += re.findall(r"§(\d+(?:\.\d+)*)", protocol)
    assert sum(map(len, citations.values())) > 100
    wrong = [f"{file}: {number}" for file, cites in citations.items() for number in cites if number not in sections]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("what", [DATE, PROCESSOR], ids=["dates", "processors"])
def test_neither_dates_nor_machines(what: re.Pattern[str]) -> None:
    """They belong to measurements. What holds is written in the present tense."""
    wrong = [
        f"{shown(file)}: {found}"
        for file in (*DOCUMENTS, *CONFIGS, *SOURCES)
        if not shown(file).startswith(FREE_OF_RULES)
        for found in what.findall(prose(file))
    ]
    assert not wrong, "\n".join(wrong)
