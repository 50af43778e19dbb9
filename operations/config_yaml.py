"""Reads YAML with limits of its size, with an error for duplicate keys, and with the line of each value."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from operations.errors import StartError

MAX_BYTES = 2**20
MAX_VALUES = 20_000
"""Each use of an alias is counted: nine lines of YAML can expand to a thousand million values."""
MAX_DEPTH = 50
Place = tuple[str | int, ...]
"""The keys and list indices on the path to a value."""


class Document(NamedTuple):
    """The content of a file, and its YAML nodes."""

    path: Path
    content: Any
    root: yaml.Node

    def error(self, place: Sequence[str | int], problem: str) -> StartError:
        """An error with the file, the line and the keys of a place."""
        keys = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")
        return StartError(f"{self.path}:{self._line(place)}: {keys + ': ' if keys else ''}{problem}")

    def _line(self, place: Sequence[str | int]) -> int:
        """The line of the last key on the path that exists."""
        node, line = self.root, self.root.start_mark.line
        for key in place:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return line + 1


def read_document(path: Path) -> Document:
    """The only document of a file.

    Raises:
        StartError: it cannot be read, is not YAML, has a key twice, or is too large.
    """
    text = _text(path)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise StartError(f"the config {path} is empty: config/serve.yaml shows what belongs into it")
        _check_size(path, root)
        content = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        said = ", ".join(filter(None, (error.context, error.problem)))
        raise StartError(f"{path}:{line}: the config is not YAML: {said}") from None
    except RecursionError:
        raise StartError(f"the config {path} is not YAML that can be read: its brackets are nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow; an impossible date
        raise StartError(f"the config {path} is not YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    return Document(path, content, root)


def _text(path: Path) -> str:
    try:
        if not path.is_file() and path.exists():
            raise StartError(f"the config {path} is not a file: name the YAML file itself")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StartError(f"cannot read the config {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise StartError(f"the config {path} is larger than {MAX_BYTES} bytes: it is probably not a config")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StartError(f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}): save it as UTF-8") from None


def _check_size(path: Path, root: yaml.Node) -> None:
    """Walks the tree with all aliases expanded."""
    for count, (node, depth) in enumerate(_walk(root, 0)):
        if count >= MAX_VALUES or depth > MAX_DEPTH:
            much = (
                f"more than {MAX_VALUES} values" if count >= MAX_VALUES else f"values nested more than {MAX_DEPTH} deep"
            )
            raise StartError(f"{path}:{node.start_mark.line + 1}: the config stands for {much}: use fewer aliases (*)")
        if isinstance(node, yaml.MappingNode):
            _check_keys(path, node)


def _walk(node: yaml.Node, depth: int) -> Iterator[tuple[yaml.Node, int]]:
    yield node, depth
    if isinstance(node, yaml.ScalarNode):
        return
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            yield from _walk(part, depth + 1)


def _check_keys(path: Path, node: yaml.MappingNode) -> None:
    first: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if (key.tag, key.value) in first:
                earlier = first[key.tag, key.value]
                raise StartError(
                    f"{path}:{line}: {key.value}: the same key is in line {earlier} already: keep only one"
                )
            first[key.tag, key.value] = line


def _child(node: yaml.Node, key: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line, node.value[key]
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value == str(key):
                return name.start_mark.line, value
    return None
