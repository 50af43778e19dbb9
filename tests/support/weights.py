"""What the tests of weights share: settings for this machine, properties, refusals, and what is left on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.places import ROOT
from embedding.errors import Fault, RequestError
from embedding.models.files.archive import unpack
from embedding.models.files.checkpoint import checkpoint_kind
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from embedding.models.properties import OpenClipProperties

ALL = ("registry", "hub", "url", "s3", "path")
CONTENT = os.urandom(300_000)
TOKEN = "hf_topsecrettoken"
SECRET = "topsecretkey/abcdefghijklmnop"


def options(folder: Path, **changes: Any) -> LoadOptions:
    """Everything allowed, of this machine."""
    everything = {
        "model_sources": ALL,
        "path_roots": (folder / "models",),
        "cache_dir": folder / "cache",
        "allowed_networks": "127.0.0.0/8",
        "connect_timeout_s": 5,
        "read_timeout_s": 5,
    }
    return LoadOptions(**{**everything, **changes})


def properties(**location: Any) -> OpenClipProperties:
    return OpenClipProperties.model_validate({"name": "ViT-B-32", "dimensions": 8, **location})


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.fault is Fault.REFUSED
    return caught.value.message


def refusal(weights: Weights, auth: dict[str, Any] | None = None, **location: Any) -> str:
    return refused(lambda: weights.checkpoint(properties(**location), auth))


def left(folder: Path) -> list[str]:
    """What a model's files could be mistaken for: everything in the cache but locks."""
    files = (path for path in (folder / "cache").rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.suffix != ".lock" and path.name != "CACHEDIR.TAG")


DOWNLOAD = """
import sys
from pathlib import Path
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
weights = Weights(
    LoadOptions(model_sources=("url",), cache_dir=Path(sys.argv[1]), allowed_networks="127.0.0.0/8")
)
print("asks", flush=True)
print(weights.url(sys.argv[2]))
"""


def process(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def unpack_archive(path: str) -> None:
    """For `cost`: unpacked beside itself, as production does it."""
    archive = Path(path)
    unpack(archive, archive.with_name(f"{archive.name}.part"), LoadOptions().max_checkpoint_bytes, lambda nbytes: None)


def judge_checkpoint(path: str) -> None:
    """For `cost`."""
    checkpoint_kind(Path(path))
