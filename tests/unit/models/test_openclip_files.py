"""Files of open_clip models that are not what they should be: named, deleted if they were downloaded, never run."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.lib.image_host import ImageHost
from embedding.models.files.options import LoadOptions
from tests.support.harmful import Harmful
from tests.support.hub_host import HubHost
from tests.support.openclip import OTHER, SIZE, check, folder, host, hub, load, options, refusal  # noqa: F401


def damaged(content: bytes, how: str) -> bytes:
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    return {"cut": content[:half], "empty": b"", "page": b"<html>not found</html>", "bit": flipped}[how]


# A changed bit shows in archives alone: the other formats have no checksums.
DAMAGE = [(name, how) for name in ("plain.pt", "old.pt", "plain.safetensors") for how in ("cut", "empty", "page")]
DAMAGE += [(name, "bit") for name in ("plain.pt", "parallel.bin", "training.pt")]


@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_a_corrupt_download_is_deleted_and_named(
    options: LoadOptions, folder: Path, host: ImageHost, name: str, how: str
) -> None:
    content = host.files[name]
    host.files[name] = damaged(content, how)
    message = refusal(options, url=host.url(f"/ok/{name}"), size=SIZE)
    assert f"the checkpoint '{name}' is corrupt" in message
    assert "deleted" in message
    host.files[name] = content
    check(load(options, url=host.url(f"/ok/{name}"), size=SIZE), folder / name)


def test_an_operators_own_file_is_never_deleted(options: LoadOptions, folder: Path) -> None:
    broken = folder / "broken.pt"
    broken.write_bytes((folder / "plain.pt").read_bytes()[:1000])
    message = refusal(options, localpath=str(broken))
    assert "'broken.pt' is corrupt" in message
    assert "deleted" not in message
    assert broken.exists()


def test_a_corrupt_hub_file_is_downloaded_anew(options: LoadOptions, hub: HubHost, tmp_path: Path) -> None:
    load(options, name="hf-hub:me/new")
    (cached,) = tmp_path.rglob("open_clip_model.safetensors")
    cached.resolve().write_bytes(b"damaged by a bad disk")
    assert "is corrupt" in refusal(options, name="hf-hub:me/new")
    load(options, name="hf-hub:me/new")


def test_a_changed_bit_in_a_file_of_the_operators(options: LoadOptions, folder: Path) -> None:
    """torch's own reader would load it, and every vector would be another."""
    bad = folder / "bit.pt"
    bad.write_bytes(damaged((folder / "plain.pt").read_bytes(), "bit"))
    torch.load(bad, weights_only=True)
    message = refusal(options, localpath=str(bad), size=SIZE)
    assert "'bit.pt' is corrupt: the checksum of its part 'plain/data/" in message
    assert "deleted" not in message
    assert bad.exists()


def test_an_archive_that_was_written_without_checksums(options: LoadOptions, folder: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.load(folder / "plain.pt"), folder / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    check(load(options, localpath=str(folder / "unchecked.pt"), size=SIZE), folder / "plain.pt")


def test_the_wrong_architecture(options: LoadOptions, host: ImageHost, tmp_path: Path) -> None:
    """The file is right, so it stays."""
    message = refusal(options, name=OTHER, url=host.url("/ok/plain.pt"), size=SIZE)
    assert f"does not fit the architecture {OTHER}" in message
    assert len(message) < 1000
    load(options, url=host.url("/ok/plain.pt"), size=SIZE)
    assert len(host.requests) == 1


def test_pickled_code_is_not_run(options: LoadOptions, folder: Path, tmp_path: Path) -> None:
    for nested in (True, False):
        content = {"state_dict": {}, "x": Harmful(tmp_path / "trace")} if nested else Harmful(tmp_path / "trace")
        torch.save(content, folder / "harmful.pt")
        message = refusal(options, localpath=str(folder / "harmful.pt"))
        assert "Python objects other than tensors" in message
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("jit", [False, True])
def test_a_program_is_no_checkpoint(options: LoadOptions, folder: Path, jit: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripting deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / "program.pt"))
    assert "TorchScript" in refusal(options, localpath=str(folder / "program.pt"), jit=jit)
