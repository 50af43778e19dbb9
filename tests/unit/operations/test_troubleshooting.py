"""Whoever looks a message of this server up in docs/troubleshooting.md finds it there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from benchmarks.lib.places import ROOT

FOLDERS = ("embedding", "deployments", "operations")
RAISED = ("StartError", "RequestError", "MediaError", "ItemError", "TransportError", "unloadable", "invalid")
"""What makes a message for an operator or a client."""
LEAST_CHARS = 7
"""Of a phrase that is worth looking up."""
FRAMES = {"", "': ", " '", ": ", ":", "the hub's repository '", "the model's tokenizer ", "Invalid model properties: "}
"""What stands around the words of another message."""
QUOTED = re.compile(r"`([^`\n]+)`")


def phrases(document: str) -> list[str]:
    """What the tables' first columns quote."""
    columns = [line.split("|")[1] for line in document.splitlines() if line.startswith("| `")]
    return [phrase for column in columns for phrase in QUOTED.findall(column) if len(phrase) >= LEAST_CHARS]


def parts(node: ast.expr) -> Iterator[str]:
    """The constant parts of a text, in order."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            for value in values:
                yield from parts(value)
        case ast.FormattedValue(value=ast.IfExp() as value):
            yield from parts(value)
        case ast.BinOp(left=one, right=other) | ast.IfExp(body=one, orelse=other):
            yield from parts(one)
            yield from parts(other)


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each message that is written where it is raised, with `…` for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED:
            found = [part for argument in node.args for part in parts(argument)]
            if set(found) - FRAMES:
                yield node.lineno, "…".join(found)


def test_messages_are_read() -> None:
    source = 'raise unloadable(f"its {n} is " + f"{m} wrong")\nraise unloadable(f"{a}: {b}")\nlog("not raised")'
    assert list(messages(source)) == [(1, "its … is … wrong")]
    assert phrases("| `the first` … `and so on` | `a remedy` | |\n| `short` |\n`elsewhere`") == [
        "the first",
        "and so on",
    ]


def test_every_message_can_be_looked_up() -> None:
    quoted = phrases((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    found = [
        (f"{path.relative_to(ROOT)}:{line}: {message}", message)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, message in messages(path.read_text(encoding="utf-8"))
    ]
    assert len(found) > 180
    missing = [place for place, message in found if not any(phrase in message for phrase in quoted)]
    assert not missing, "\n".join(missing)
