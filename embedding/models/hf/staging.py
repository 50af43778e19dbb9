"""A temporary folder with what transformers may read of a repository: checked config files, and links to large files.

transformers looks for files of many names in a folder, and trusts all of them. The temporary folder has only those that
it needs, each of them a regular file of the repository.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from embedding.models.files.failure import unloadable
from embedding.models.files.json_file import JsonMap, read_map
from embedding.models.hf.config_checks import (
    MODEL_TYPES,
    checked_added_tokens,
    checked_config,
    checked_index,
    checked_special_tokens,
    checked_tokenizer_config,
)
from embedding.shown import shown

MAX_VOCABULARY_BYTES = 128 * 2**20
_VOCABULARY = re.compile(r"tokenizer\.json|vocab\.(txt|json)|merges\.txt|[\w.-]{1,100}\.model", re.ASCII)
_TOKENIZER_CHECKS = {
    "tokenizer_config.json": checked_tokenizer_config,
    "special_tokens_map.json": checked_special_tokens,
    "added_tokens.json": checked_added_tokens,
}
# The repository of a tokenizer may be that of a whole model, whose type implies the class of the tokenizer.
_TOKENIZER_MODEL_TYPES = MODEL_TYPES | {
    "align", "altclip", "bart", "chinese_clip", "clip", "clip_text_model", "gemma3", "mbart", "siglip", "siglip2",
    "siglip2_text_model", "siglip_text_model",
}  # fmt: skip


def resolved_file(path: Path, folder: Path, roots: Sequence[Path] = ()) -> Path:
    """Resolves the links of a repository's file, and checks that it is a regular file of that repository.

    Args:
        path: within the folder.
        folder: of the repository. In the cache of the hub's client its files are links to those in `blobs`.
        roots: folders of the operator, into which a link may lead too.

    Raises:
        RequestError: REFUSED: a link leads out of the repository, or it is a device, a pipe or a folder.
    """
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        raise unloadable(f"{path.name} is a link to nothing") from None
    allowed = [folder.resolve(), *roots]
    if folder.parent.name == "snapshots":
        allowed.append((folder.parent.parent / "blobs").resolve())
    if not any(resolved.is_relative_to(parent) for parent in allowed):
        raise unloadable(f"{path.name} is a link that leads out of the repository")
    if not resolved.is_file():
        raise unloadable(f"{path.name} is no regular file")
    return resolved


def repository_json(folder: Path, name: str, roots: Sequence[Path] = ()) -> JsonMap | None:
    """Reads a JSON object of a repository; None if it has no such file."""
    path = folder / name
    return read_map(resolved_file(path, folder, roots)) if _exists(path) else None


@contextmanager
def staged_tokenizer(folder: Path, roots: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary folder that a tokenizer is loaded from.

    Raises:
        RequestError: REFUSED, naming the file.
    """
    with tempfile.TemporaryDirectory(prefix="marqo-tokenizer-") as staged:
        target = Path(staged)
        for path in sorted(folder.iterdir()):
            if _VOCABULARY.fullmatch(path.name):
                _link_vocabulary(resolved_file(path, folder, roots), target / path.name)
        for name, checked in _TOKENIZER_CHECKS.items():
            given = repository_json(folder, name, roots)
            if given is not None:
                (target / name).write_text(json.dumps(checked(given, name)))
        whole = repository_json(folder, "config.json", roots) or {}
        (target / "config.json").write_text(json.dumps(_tokenizer_config(whole)))
        yield target


@contextmanager
def staged_model(folder: Path, config: JsonMap, files: Sequence[Path], roots: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary folder that a transformers model is loaded from: its checked config and its files of weights.

    Raises:
        RequestError: REFUSED, naming the file.
    """
    with tempfile.TemporaryDirectory(prefix="marqo-model-") as staged:
        target = Path(staged)
        (target / "config.json").write_text(json.dumps(config))
        present = frozenset(path.name for path in files)
        for path in files:
            (target / path.name).symlink_to(resolved_file(path, folder, roots))
        for suffix in {path.suffix for path in files}:
            name = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}[suffix]
            index = repository_json(folder, name, roots)
            if index is not None:
                (target / name).write_text(json.dumps(checked_index(index, present, name)))
        yield target


def model_config(folder: Path, roots: Sequence[Path] = ()) -> JsonMap:
    """A transformers model's config, checked.

    Raises:
        RequestError: REFUSED: there is none, or it is not of a model that is served.
    """
    given = repository_json(folder, "config.json", roots)
    if given is None:
        raise unloadable("there is no config.json, so these are not the files of a transformers model")
    return checked_config(given)


def tensor_count(path: Path) -> int | None:
    """An upper bound for the number of tensors in a file of weights; None if unknown."""
    with path.open("rb") as file:
        head = file.read(9)
        if head[8:] == b"{":
            length = int.from_bytes(head[:8], "little")
            return (b"{" + file.read(min(length, MAX_VOCABULARY_BYTES))).count(b'"data_offsets"')
        if head[:4] == b"PK\x03\x04":
            file.seek(-min(22, path.stat().st_size), 2)
            end = file.read(22)
            entries = int.from_bytes(end[10:12], "little")
            return entries if end[:4] == b"PK\x05\x06" and entries != 0xFFFF else None
    return None


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _link_vocabulary(source: Path, link: Path) -> None:
    size = source.stat().st_size
    if size > MAX_VOCABULARY_BYTES:
        raise unloadable(f"{shown(link.name)} has {size} bytes, and at most {MAX_VOCABULARY_BYTES} are taken")
    link.symlink_to(source)


def _tokenizer_config(config: JsonMap) -> JsonMap:
    part = {}
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in _TOKENIZER_MODEL_TYPES:
        part["model_type"] = kind
    if isinstance(config.get("tokenizer_class"), str):
        part |= checked_tokenizer_config({"tokenizer_class": config["tokenizer_class"]}, "config.json")
    return part
