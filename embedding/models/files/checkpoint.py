"""Detects the format of a checkpoint file, and checks that it is intact and safe to load: it is untrusted input.

Everything that the file's metadata claims is checked before a library uses it: the sizes of its parts by arithmetic,
its pickle against a list of what may be in one. So the file's size limits the memory that loading it takes.

torch.save's zip archives have a checksum for each tensor, which torch's own reader ignores: a file with a flipped bit
would load, and give other vectors. Safetensors and the pickles of torch before 1.6 have no checksums.
"""

from __future__ import annotations

import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

from safetensors import SafetensorError, safe_open

from embedding.models.files import pickles, zips
from embedding.models.files.failure import described, is_out_of_memory, unloadable
from embedding.models.files.pickle_values import BrokenPickle, ShortPickle, Storage, python_objects
from embedding.models.files.pickles import read_pickle
from embedding.shown import shown

Kind = Literal["safetensors", "pickle"]
# A tensor takes about 110 bytes of a header: the largest models that are served here have 250 KB.
# Source: torch.serialization, MAGIC_NUMBER and PROTOCOL_VERSION. Importing them would load torch.
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_MAX_HEADER_BYTES = 2 * 2**20
_MAX_PARTS = 20_000


class BrokenCheckpoint(Exception):
    """The file is damaged, or is no checkpoint at all; the text says why."""


def checkpoint_kind(path: Path) -> Kind:
    """Detects the kind of a file by its content, since its name may be arbitrary.

    Reads a whole zip archive to verify its checksums: 0.2 s for 600 MB in the page cache.

    Raises:
        BrokenCheckpoint: neither kind, or visibly damaged.
        RequestError: REFUSED: a TorchScript archive, which is a program and not just weights; Python objects other
            than tensors; or metadata that would take too much memory or time to read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
        if head[8:9] == b"{":
            _check_safetensors(path, int.from_bytes(head[:8], "little"), size)
            return "safetensors"
    if head[:4] == b"PK\x03\x04":
        _check_zip(path)
        return "pickle"
    if head[:1] == b"\x80":
        _check_legacy(path, size)
        return "pickle"
    raise BrokenCheckpoint(f"{size} bytes that are neither safetensors nor of torch.save")


def check_readable(path: Path, kind: Kind) -> None:
    """Reads a whole checkpoint as open_clip does, to find out whether the file is the cause of a failed load.

    Raises:
        BrokenCheckpoint: the file cannot be read.
        Exception: whatever says that there is no memory for it (see `is_out_of_memory`).
        RequestError: REFUSED: it holds Python objects other than tensors.
    """
    from open_clip.factory import load_state_dict
    from safetensors.torch import load_file

    try:
        if kind == "safetensors":
            load_file(path)
        else:
            load_state_dict(str(path), weights_only=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = str(error)
        if "Weights only load failed" in text and ("allowed global" in text or "GLOBAL" in text):
            raise python_objects() from None
        raise BrokenCheckpoint(described(error)) from None


def _check_safetensors(path: Path, header_bytes: int, size: int) -> None:
    """safetensors' own reader checks that the header's types and shapes fit its offsets, and that each byte of the file
    belongs to exactly one tensor. Unlike `json` it creates no Python objects for the header.
    """
    if header_bytes > size - 8:
        raise BrokenCheckpoint("its header is cut off")
    if header_bytes > _MAX_HEADER_BYTES:
        raise unloadable(
            f"the checkpoint has a header of {header_bytes} bytes, and {_MAX_HEADER_BYTES} are read at most; save it "
            "in several files"
        )
    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise BrokenCheckpoint(f"it is cut off, or its header is malformed: {described(error)}") from None


def _check_zip(path: Path) -> None:
    try:
        with path.open("rb") as file, zips.opened(file, _MAX_PARTS) as archive:
            _check_parts(file, archive.infolist())
            # All are zero if it was written without checksums (torch.serialization.set_crc32_options(False)).
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except zips.BROKEN as error:
        raise BrokenCheckpoint(f"it is cut off or damaged: {described(error)}") from None
    if damaged is not None:
        raise BrokenCheckpoint(f"the checksum of its part '{damaged}' is wrong")


def _check_parts(file: BinaryIO, infos: list[zipfile.ZipInfo]) -> None:
    """Checks that all parts are stored uncompressed, and that each has the size that the pickle says."""
    parts = {info.filename.split("/", 1)[-1]: info for info in infos}
    if any(part.startswith("code/") or part == "constants.pkl" for part in parts):
        raise unloadable("the checkpoint is a TorchScript archive, which is a program; save its state_dict instead")
    if "data.pkl" not in parts:
        raise BrokenCheckpoint("a zip file, but not one of torch.save")
    if len({info.filename.split("/", 1)[0] for info in infos}) != 1 or len(parts) != len(infos):
        raise BrokenCheckpoint("its parts lie in several folders")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise unloadable("the checkpoint is compressed, which torch.save does not do; save it anew")
    if parts["data.pkl"].file_size > pickles.MAX_BYTES:
        raise _too_long()
    for storage in _storages_in(zips.stored(file, parts["data.pkl"])):
        part = parts.get(f"data/{storage.key}")
        if part is None or part.file_size != storage.nbytes:
            raise BrokenCheckpoint(f"its part 'data/{shown(storage.key)}' is missing or has another size than it says")


def _storages_in(content: bytes) -> list[Storage]:
    """The storages that the pickle of a zip archive refers to."""
    try:
        _, end, storages = read_pickle(content)
    except BrokenPickle as error:
        raise BrokenCheckpoint(f"its description is damaged: {error}") from None
    if end != len(content):
        raise BrokenCheckpoint("there is something behind its description")
    return storages


def _check_legacy(path: Path, size: int) -> None:
    """Checks the format of torch before 1.6: five pickles, then the storages in the order of the fifth, each behind its
    length."""
    with path.open("rb") as file:
        content = file.read(pickles.MAX_BYTES)
        try:
            storages, position = _legacy_storages(content)
        except ShortPickle as error:
            if len(content) < size:
                raise _too_long() from None
            raise BrokenCheckpoint(str(error)) from None
        except BrokenPickle as error:
            raise BrokenCheckpoint(f"its description is damaged: {error}") from None
        for storage in storages:
            file.seek(position)
            if int.from_bytes(file.read(8), "little") != storage.count:
                raise BrokenCheckpoint("a part of it is cut off, or has another size than it says")
            position += 8 + storage.nbytes
    if position != size:
        raise BrokenCheckpoint(f"it has {size} bytes instead of {position}")


def _legacy_storages(content: bytes) -> tuple[list[Storage], int]:
    """The storages in the order of the file, and the offset at which they begin."""
    with suppress(tarfile.HeaderError):
        # A file may be valid as both formats, and torch tries tar first.
        tarfile.TarInfo.frombuf(content[:512], "utf-8", "surrogateescape")
        raise BrokenCheckpoint("it is a tar file")
    magic, position, _ = read_pickle(content)
    version, position, _ = read_pickle(content, position)
    if (magic, version) != (_MAGIC_NUMBER, _PROTOCOL_VERSION):
        raise BrokenCheckpoint("it is not of torch.save")
    _, position, _ = read_pickle(content, position)
    _, position, found = read_pickle(content, position)
    keys, position, _ = read_pickle(content, position)
    storages: dict[str, Storage] = {}
    for storage in found:
        if storages.setdefault(storage.key, storage) != storage:
            raise BrokenCheckpoint("it says two things of one part")
    strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not strings or sorted(keys) != sorted(storages):
        raise BrokenCheckpoint("it does not have the parts that it describes")
    return [storages[key] for key in keys], position


def _too_long() -> Exception:
    return unloadable(
        f"the checkpoint's description has more than {pickles.MAX_BYTES} bytes; save its state_dict alone"
    )
