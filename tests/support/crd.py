"""Schemas of other projects' custom resources, and what in a manifest they do not allow.

`tests/support/crds/` has them as JSON without descriptions, status, and repetitions. A newer one is made from the
definition that a project publishes:

    python -m tests.support.crd DEFINITION.yaml
"""

import functools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).with_name("crds")
MIN_REPEATED = 300
"""Least length of a part, in characters of JSON, that is kept once although it is used several times."""


@functools.cache
def validator(kind: str) -> Draft202012Validator:
    """The schema of a kind, in which a key that it does not name is an error. Kubernetes drops such a key silently."""
    return Draft202012Validator(_closed(json.loads((FOLDER / f"{kind}.json").read_text())))


def violations(manifest: dict[str, Any]) -> list[str]:
    """What the schema of its kind does not allow, each with its place."""
    errors = validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {key: _closed(value) for key, value in node.items()}
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if is_open or not isinstance(node.get("properties"), dict):
        return node
    return node | {"additionalProperties": False}


def stored(definition: dict[str, Any]) -> dict[str, Any]:
    """The schema of the version that Kubernetes stores, with what is repeated in `$defs`."""
    (version,) = (version for version in definition["spec"]["versions"] if version["storage"])
    schema = _bare(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    counts = Counter(_text(part) for part in _parts(schema))
    repeated = sorted((text for text, count in counts.items() if count > 1 and len(text) >= MIN_REPEATED), key=len)
    names = {text: f"part{index}" for index, text in enumerate(repeated)}
    parts = {name: _named(json.loads(text), names, top=True) for text, name in names.items()}
    return {"$defs": parts, **_named(schema, names, top=True)}


def _bare(node: Any) -> Any:
    if isinstance(node, list):
        return [_bare(each) for each in node]
    if not isinstance(node, dict):
        return node
    # A text is a description; a mapping is a property of that name.
    return {k: _bare(v) for k, v in node.items() if not (k == "description" and isinstance(v, str))}


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """The schemas within a schema, itself included."""
    if isinstance(node, list):
        for each in node:
            yield from _parts(each)
    elif isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for value in node.values():
            yield from _parts(value)


def _named(node: Any, names: dict[str, str], top: bool = False) -> Any:
    if isinstance(node, list):
        return [_named(each, names) for each in node]
    if not isinstance(node, dict):
        return node
    if not top and isinstance(node.get("type"), str) and (name := names.get(_text(node))):
        return {"$ref": f"#/$defs/{name}"}
    return {key: _named(value, names) for key, value in node.items()}


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True)


if __name__ == "__main__":
    definition = yaml.safe_load(Path(sys.argv[1]).read_text())
    target = FOLDER / f"{definition['spec']['names']['kind']}.json"
    target.write_text(json.dumps(stored(definition), indent=1) + "\n")
