"""Checkpoints, changed, through what judges them by reading, and those that pass through the library too."""

from __future__ import annotations

import importlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from embedding.errors import RequestError
from embedding.models.files.checkpoint import BrokenCheckpoint, check_readable, checkpoint_kind
from tests.fuzz import bytewise
from tests.fuzz.archives import PLACE
from tests.fuzz.target import Finding

NUMBERS: list[Any] = [0, 1, -1, 2, 7, 2**20, 2**31, 2**40, 2**63, 2**64, 1e308]
NUMBERS += [None, "a", [], {}, [0], [2**40, 2**40]]


class Checkpoints:
    """Files through `checkpoint_kind`, and `check_readable` if they pass."""

    name = "checkpoints"
    deadline_s = 0.5
    memory_bytes = 64 * 2**20

    def __init__(self) -> None:
        self._seeds = list(_seeds())
        importlib.import_module("open_clip.factory")  # large, and no input's fault

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`. Half of the changes leave the file's structure whole."""
        rng = Random(seed << 40 | index)
        data = rng.choice(self._seeds)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.5:
                data = bytewise.mutated(rng, data, self._seeds)
            elif data[8:9] == b"{":
                data = _header_changed(rng, data)
            elif data[:2] == b"PK":
                data = _part_changed(rng, data)
        return data

    def run(self, data: bytes, index: int) -> str:
        """A kind that can be read, or a refusal."""
        with tempfile.NamedTemporaryFile(dir=PLACE) as file:
            path = Path(file.name)
            path.write_bytes(data)
            try:
                kind = checkpoint_kind(path)
            except BrokenCheckpoint as error:
                return _told("broken", str(error))
            except RequestError as error:
                return _told("refused", error.message)
            try:
                check_readable(path, kind)
            except (BrokenCheckpoint, RequestError) as error:
                return _told("passed, and not readable", str(error))
        return f"valid {kind}"


def _told(outcome: str, message: str) -> str:
    if not 0 < len(message) < 2000 or not message.replace("\n", " ").isprintable():
        raise Finding("message", repr(message)[:200])
    return outcome


def _seeds() -> Iterator[bytes]:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    yield save(state, {"format": "pt"})
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 1}, buffer, _use_new_zipfile_serialization=new)
        yield buffer.getvalue()


def _header_changed(rng: Random, data: bytes) -> bytes:
    """A safetensors file with one member of its header changed."""
    length = int.from_bytes(data[:8], "little")
    try:
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
    except ValueError:
        return data
    name = rng.choice([*header, "new"])
    entry = header.get(name)
    if isinstance(entry, dict) and entry and rng.random() < 0.8:
        key = rng.choice(list(entry))
        if isinstance(entry[key], list) and entry[key] and rng.random() < 0.7:
            entry[key][rng.randrange(len(entry[key]))] = rng.choice(NUMBERS)
        else:
            entry[key] = rng.choice((*NUMBERS, "F64", "BOOL", "F8_E4M3"))
    else:
        header[name] = rng.choice((*NUMBERS, header.get("b")))
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + data[8 + length :]


def _part_changed(rng: Random, data: bytes) -> bytes:
    """A zip of torch.save with one part changed, its checksum put right; now and then compressed."""
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
            chosen = rng.choice(old.namelist())
            for name in old.namelist():
                content = old.read(name)
                new.writestr(name, bytewise.mutated(rng, content, [content]) if name == chosen else content)
    except Exception:
        return data
    return buffer.getvalue()
