"""What kind of file a checkpoint is, told by its content, whether it is intact, and the safe way to read it.

torch.save's zip archives have a checksum for each tensor, which torch's own reader does not look at: a file with a bit
changed would load, and give other vectors. Safetensors and the pickles of torch before 1.6 have none.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Literal

from embedding.models.failure import described, is_out_of_memory, unloadable

Kind = Literal["safetensors", "pickle"]
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


class BrokenCheckpoint(Exception):
    """The file is damaged, or is no checkpoint at all; the text says why."""


def checkpoint_kind(path: Path) -> Kind:
    """The kind of a file: its name may be anything that a URL ends in.

    Reads all of an archive for its checksums: 0.2 s for 600 MB that are in the page cache.

    Raises:
        BrokenCheckpoint: neither kind, or visibly damaged.
        RequestError: REFUSED: a TorchScript archive, which is a program and not just weights.
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
    if head[:1] == b"\x80":  # torch.save before 1.6
        return "pickle"
    raise BrokenCheckpoint(f"{size} bytes that are neither safetensors nor of torch.save")


def check_readable(path: Path, kind: Kind) -> None:
    """Reads a whole checkpoint as open_clip does, to learn whether the file or the model is to blame.

    Raises:
        BrokenCheckpoint: the file is.
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
            raise unloadable(
                "the checkpoint holds Python objects other than tensors, whose loading can run code; save its "
                "state_dict alone, or as safetensors"
            ) from None
        raise BrokenCheckpoint(described(error)) from None


def _check_safetensors(path: Path, header_bytes: int, size: int) -> None:
    """The header says how long the file is."""
    if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
        raise BrokenCheckpoint("its header is cut off")
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise BrokenCheckpoint("its header is malformed") from None
    if 8 + header_bytes + max(ends, default=0) != size:
        raise BrokenCheckpoint(f"it has {size} bytes instead of {8 + header_bytes + max(ends, default=0)}")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # All zero: it was written without checksums (torch.serialization.set_crc32_options(False)).
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise BrokenCheckpoint(f"it is cut off or damaged: {error}") from None
    if damaged is not None:
        raise BrokenCheckpoint(f"the checksum of its part '{damaged}' is wrong")
    parts = [name.split("/", 1)[-1] for name in names]
    if any(part.startswith("code/") or part == "constants.pkl" for part in parts):
        raise unloadable("the checkpoint is a TorchScript archive, which is a program; save its state_dict instead")
    if "data.pkl" not in parts:
        raise BrokenCheckpoint("a zip file, but not one of torch.save")
