"""docs/configuration.md says of every setting and every environment variable what the code says.

Each settings class has a table below a heading that is its place in a config, such as `args.preprocessor.fetch`.
Defaults are compared in the form that the document explains: bytes as `64 MiB`, null as `none`, lists as `[a, b]`.
"""

import dataclasses
import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

import graph
from benchmarks.lib.places import ROOT
from deployments.encoder.encoder import Encoder
from deployments.ingress.ingress import Ingress
from deployments.preprocessor.preprocessor import Preprocessor
from operations import environment
from operations.config_file import read_config

DOCUMENT = (ROOT / "docs" / "configuration.md").read_text()
PREFIXES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
UNITS = (("bytes_per_s", "bytes/s"), ("_ms", "ms"), ("_s", "s"), ("bytes", "bytes"), ("bytes_in_flight", "bytes"))
"""The unit that the end of a setting's name stands for."""
VARIABLE = re.compile(r"""["'$]\{?((?:MARQO|RAY|HF|AWS|OMP)_\w+|no_\w*proxy|NO_PROXY)\b""")
"""A variable of the environment in the source: a literal of Python, or with a dollar sign elsewhere."""
OF_THE_MACHINE = {
    "MARQO_HAPROXY_BINARY",
    "MARQO_PYTHON",
    "RAY_SERVE_HAPROXY_BINARY_PATH",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
}
"""Variables that hold a path or a port of the machine, which no document can name."""


class Row(NamedTuple):
    """The cells behind the name."""

    default: str
    unit: str
    meaning: str


Table = dict[str, Row]
Setting = tuple[Any, Any]
"""Its type, and its default, which is `...` for one that must be given."""


def tables(text: str) -> dict[str, Table]:
    """The tables of a document by the heading above them, without backticks. A row may name several variables."""
    found: dict[str, Table] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").replace("`", "")
        elif line.startswith("| `"):
            names, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            table = found.setdefault(heading, {})
            for name in re.findall("`([^`]+)`", names):
                assert name not in table, f"{heading}: there are two rows for `{name}`"
                table[name] = Row(*cells)
    return found


def settings_of(group: type[Any]) -> dict[str, Setting]:
    """The settings of a class, pydantic's or a dataclass."""
    if issubclass(group, BaseModel):
        return {
            name: (field.annotation, ... if field.is_required() else field.get_default(call_default_factory=True))
            for name, field in group.model_fields.items()
        }
    hints = typing.get_type_hints(group)
    return {field.name: (hints[field.name], _default_of(field)) for field in dataclasses.fields(group)}


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return ... if field.default is dataclasses.MISSING else field.default


def groups() -> dict[str, type[Any]]:
    """Every settings class by its place in a config."""
    found = dict(_nested("args", graph.GraphArgs))
    for deployment, settings in graph.USER_CONFIGS.items():
        if settings is not None:
            found |= _nested(f"{deployment}.user_config", settings)
    return found


def _nested(place: str, group: type[Any]) -> Iterator[tuple[str, type[Any]]]:
    yield place, group
    for name, (annotation, _) in settings_of(group).items():
        for leaf, listed in _leaves(annotation):
            if isinstance(leaf, type) and (issubclass(leaf, BaseModel) or dataclasses.is_dataclass(leaf)):
                yield from _nested(f"{place}.{name}{'[]' if listed else ''}", leaf)


def _leaves(annotation: Any, listed: bool = False) -> Iterator[tuple[Any, bool]]:
    """The types that an annotation is made of, each with whether it is that of a list's entries."""
    parts = typing.get_args(annotation)
    for part in parts:
        yield from _leaves(part, listed or typing.get_origin(annotation) in (list, tuple))
    if not parts:
        yield annotation, listed


def unit_of(name: str) -> str | None:
    """The unit that a setting's name says; None if it says none."""
    return next((unit for end, unit in UNITS if name.endswith(end)), None)


def rendered(name: str, default: Any) -> str:
    """A default as the document writes it."""
    if default is ...:
        return "required"
    if isinstance(default, BaseModel) or dataclasses.is_dataclass(default) or default == {}:
        return "`{}`"
    if isinstance(default, list | tuple):
        return f"`[{', '.join(map(str, default))}]`"
    if default is None or isinstance(default, bool):
        return f"`{default}`".lower()
    if isinstance(default, int | float):
        return f"`{_number(default, unit_of(name))}`"
    return f"`{default}`" if default != "" else '`""`'


def _number(value: float, unit: str | None) -> str:
    if value and unit in ("bytes", "bytes/s"):
        for prefix, factor in PREFIXES:
            if value % factor == 0:
                return f"{value // factor:.0f} {prefix}"
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def differences(text: str) -> list[str]:
    """Where a document and the settings classes do not agree, in sentences."""
    documented = tables(text)
    return [
        f"{place}: {sentence}"
        for place, group in groups().items()
        for sentence in _compared(settings_of(group), documented.get(place, {}))
    ]


def _compared(settings: Mapping[str, Setting], table: Table) -> Iterator[str]:
    yield from (f"the setting `{name}` has no row" for name in settings if name not in table)
    yield from (f"there is no setting `{name}`" for name in table if name not in settings)
    for name in [name for name in settings if name in table]:
        row, default, unit = table[name], rendered(name, settings[name][1]), unit_of(name)
        if row.default != default:
            yield f"the default of `{name}` is {default}, not {row.default}"
        if unit not in (None, row.unit):
            yield f"the unit of `{name}` is {unit}, not {row.unit}"
        if not (row.unit and row.meaning):
            yield f"`{name}` has no unit or no meaning"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some defaults come from the environment."""
    for name in list(os.environ):
        if not name.startswith("PYTEST_"):
            monkeypatch.delenv(name)


def test_the_settings_are_those_of_their_classes() -> None:
    found = differences(DOCUMENT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        (r"\| `text_chunk` .*\n", "", "args.ingress: the setting `text_chunk` has no row"),
        (r"\| `dns_cache_s` .*\n", "", "args.preprocessor.fetch: the setting `dns_cache_s` has no row"),
        (r"\| `max_text_batch`", "| `max_texts`", "Encoder.user_config: there is no setting `max_texts`"),
        (r"`64 GiB`", "`1 GB`", "args.encoder.models: the default of `max_checkpoint_bytes` is `64 GiB`, not `1 GB`"),
        (r"`60000` \| ms", "`60000` | s", "args.preprocessor.fetch: the unit of `max_timeout_ms` is ms, not s"),
        (r"\| – \| The name under .*\n", "| – | \n", "args.encoder.preload[]: `model` has no unit or no meaning"),
    ],
)
def test_a_difference_is_a_sentence(right: str, wrong: str, sentence: str) -> None:
    text, count = re.subn(right, wrong, DOCUMENT)
    assert count == 1
    assert sentence in differences(text)


def test_the_example_is_a_config(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    path = tmp_path / "config.yaml"
    path.write_text(example)
    read_config(path)


def test_what_the_graph_sets_is_what_its_deployments_say() -> None:
    table = tables(DOCUMENT)["What the graph itself sets"]
    deployments: tuple[Any, ...] = (Ingress, Preprocessor, Encoder)
    assert table["max_ongoing_requests"] == tuple(f"`{each.max_ongoing_requests}`" for each in deployments)
    assert table["ray_actor_options.num_cpus"] == tuple(
        f"`{each.ray_actor_options['num_cpus']}`" for each in deployments
    )
    assert deployments[2].user_config == {"max_image_batch": 32, "max_text_batch": 128}
    assert table["user_config"] == ("`{}`", "`{}`", "`{max_image_batch: 32, max_text_batch: 128}`")


def test_the_variables_are_those_that_are_set() -> None:
    documented = tables(DOCUMENT)
    every_node, machine = environment.for_cluster(), environment.for_machine()
    sections = {
        "Set on every node": every_node,
        "Set by make serve alone": {name: value for name, value in machine.items() if name not in every_node},
    }
    for heading, variables in sections.items():
        table = documented[heading]
        assert variables.keys() - table.keys() == set(), f"{heading}: these variables have no row"
        assert table.keys() - variables.keys() == set(), f"{heading}: these variables are not set"
        for name in variables.keys() - OF_THE_MACHINE:
            assert table[name].default == f"`{variables[name]}`", f"{heading}: `{name}` has another value"


def test_every_variable_in_the_source_is_in_the_document() -> None:
    headings = DOCUMENT[DOCUMENT.index("## Environment variables") :]
    documented = {name for table in tables(headings).values() for name in table}
    folders = (ROOT / name for name in ("deployments", "embedding", "operations"))
    files = [ROOT / "graph.py", ROOT / "operations/haproxy/wrapper", *(ROOT / "config").iterdir()]
    files += [file for folder in folders for file in folder.rglob("*.py")]
    used = {name for file in files for name in VARIABLE.findall(file.read_text())}
    assert used - documented == set(), "these variables of the source are not in the document"
    ours = {name for name in documented if name.startswith("MARQO_")}
    assert ours - used == set(), "these variables of the document are not in the source"
