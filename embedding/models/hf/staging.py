"""A folder with what transformers may read of a repository: descriptions that were checked, and links to large files.

transformers looks into a folder for files of many names and believes all of them. In here are those that it needs, and
each is a regular file of the repository's own.
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
from embedding.models.hf.description import (
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
# A tokenizer's repository may be that of a whole model, whose type says which class of tokenizer it means.
_TOKENIZER_MODEL_TYPES = MODEL_TYPES | {
    "align", "altclip", "bart", "chinese_clip", "clip", "clip_text_model", "gemma3", "mbart", "siglip", "siglip2",
    "siglip2_text_model", "siglip_text_model",
}  # fmt: skip


def own_file(path: Path, folder: Path, roots: Sequence[Path] = ()) -> Path:
    """A regular file of a repository, links followed.

    Args:
        path: within the folder.
        folder: of the repository. In the layout of the hub's client its files are links to those in `blobs`.
        roots: folders of the operator's, into which a link may lead too.

    Raises:
        RequestError: REFUSED: a link leads out of the repository, or it is a device, a pipe or a folder.
    """
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        raise unloadable(f"{path.name} is a link to nothing") from None
    homes = [folder.resolve(), *roots]
    if folder.parent.name == "snapshots":
        homes.append((folder.parent.parent / "blobs").resolve())
    if not any(resolved.is_relative_to(home) for home in homes):
        raise unloadable(f"{path.name} is a link that leads out of the repository")
    if not resolved.is_file():
        raise unloadable(f"{path.name} is no regular file")
    return resolved


def described_by(folder: Path, name: str, roots: Sequence[Path] = ()) -> JsonMap | None:
    """A JSON object of a repository; None if it has no such file."""
    path = folder / name
    return read_map(own_file(path, folder, roots)) if _is_there(path) else None


@contextmanager
def staged_tokenizer(folder: Path, roots: Sequence[Path] = ()) -> Iterator[Path]:
    """What a tokenizer is loaded from.

    Raises:
        RequestError: REFUSED, naming the file.
    """
    with tempfile.TemporaryDirectory(prefix="marqo-tokenizer-") as staged:
        place = Path(staged)
        for path in sorted(folder.iterdir()):
            if _VOCABULARY.fullmatch(path.name):
                _link_vocabulary(own_file(path, folder, roots), place / path.name)
        for name, checked in _TOKENIZER_CHECKS.items():
            given = described_by(folder, name, roots)
            if given is not None:
                (place / name).write_text(json.dumps(checked(given, name)))
        whole = described_by(folder, "config.json", roots) or {}
        (place / "config.json").write_text(json.dumps(_tokenizers_part(whole)))
        yield place


@contextmanager
def staged_model(folder: Path, config: JsonMap, files: Sequence[Path], roots: Sequence[Path] = ()) -> Iterator[Path]:
    """What a transformers model is loaded from: its checked config and its files of weights.

    Raises:
        RequestError: REFUSED, naming the file.
    """
    with tempfile.TemporaryDirectory(prefix="marqo-model-") as staged:
        place = Path(staged)
        (place / "config.json").write_text(json.dumps(config))
        present = frozenset(path.name for path in files)
        for path in files:
            (place / path.name).symlink_to(own_file(path, folder, roots))
        for suffix in {path.suffix for path in files}:
            name = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}[suffix]
            index = described_by(folder, name, roots)
            if index is not None:
                (place / name).write_text(json.dumps(checked_index(index, present, name)))
        yield place


def model_config(folder: Path, roots: Sequence[Path] = ()) -> JsonMap:
    """A transformers model's config, checked.

    Raises:
        RequestError: REFUSED: there is none, or it is not of a model that is served.
    """
    given = described_by(folder, "config.json", roots)
    if given is None:
        raise unloadable("there is no config.json, so these are not the files of a transformers model")
    return checked_config(given)


def tensor_count(path: Path) -> int | None:
    """About how many tensors a file of weights holds, which is never less than it does; None if it does not tell."""
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


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _link_vocabulary(source: Path, link: Path) -> None:
    size = source.stat().st_size
    if size > MAX_VOCABULARY_BYTES:
        raise unloadable(f"{shown(link.name)} has {size} bytes, and at most {MAX_VOCABULARY_BYTES} are taken")
    link.symlink_to(source)


def _tokenizers_part(config: JsonMap) -> JsonMap:
    part = {}
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in _TOKENIZER_MODEL_TYPES:
        part["model_type"] = kind
    if isinstance(config.get("tokenizer_class"), str):
        part |= checked_tokenizer_config({"tokenizer_class": config["tokenizer_class"]}, "config.json")
    return part
