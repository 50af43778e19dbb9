"""Archives of a whole repository, hostile and broken ones too, and local files that belong together."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_host import ImageHost
from weights_parts import CONTENT, left, options

from embedding.errors import RequestError
from embedding.models.properties import HfProperties
from embedding.models.weights import Weights


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"model.pt": CONTENT}) as host:
        yield host


def _tar(files: dict[str, bytes], mode: Any = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def hf_properties(**location: Any) -> HfProperties:
    return HfProperties.model_validate({"type": "hf", "dimensions": 8, **location})


FILES = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
ARCHIVES = {
    "model.zip": _zip(FILES),
    "model.tar": _tar(FILES, "w"),
    "model.tar.gz": _tar(FILES),
    "model.tar.xz": _tar(FILES, "w:xz"),
    "nested.tar.gz": _tar({f"model/{name}": content for name, content in FILES.items()}),
    "nameless": _zip(FILES),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path: Path, host: ImageHost, name: str) -> None:
    host.files[name] = ARCHIVES[name]
    weights = Weights(options(tmp_path))
    folder = weights.archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert weights.archive(hf_properties(url=host.url(f"/ok/{name}"))) == folder
    assert len(host.requests) == 1


def _with_link(target: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("config.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        tar.addfile(entry)
    return buffer.getvalue()


HOSTILE = {
    "up.tar": _tar({"../../escaped": b"x"}, "w"),
    "absolute-link.tar": _with_link("/etc/passwd"),
    "link.tar": _with_link("../../../../../../etc/passwd"),
    "up.zip": _zip({"../../escaped": b"x"}),
    "absolute.zip": _zip({"/escaped": b"x"}),
    "bomb.tar.gz": _tar({"zeros": bytes(50_000_000)}),
    "many.zip": _zip({str(number): b"" for number in range(10_001)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(tmp_path: Path, host: ImageHost, name: str) -> None:
    host.files[name] = HOSTILE[name]
    weights = Weights(options(tmp_path, max_checkpoint_bytes=10_000_000))
    with pytest.raises(RequestError, match="Unable to load model: the archive"):
        weights.archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert not list(tmp_path.rglob("escaped"))
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("name", ["model.zip", "model.tar.gz", "model.tar.xz", "junk"])
def test_a_broken_archive_is_deleted_and_named(tmp_path: Path, host: ImageHost, name: str) -> None:
    content = ARCHIVES.get(name, CONTENT)
    host.files[name] = content[: len(content) // 2]
    with pytest.raises(RequestError, match=rf"the archive '{name}' is corrupt .*; it was deleted"):
        Weights(options(tmp_path)).archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert left(tmp_path) == []


def test_local_files_that_belong_together(tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "other").mkdir(parents=True)
    for name in ("model.onnx", "model.onnx.data", "other/model.onnx.data"):
        (root / name).write_bytes(b"")
    weights = Weights(options(tmp_path))
    assert weights.folder([f"{root}/model.onnx", f"{root}/model.onnx.data"]) == root
    assert weights.folder([f"{root}/other"]) == root / "other"
    for group in (
        [f"{root}/model.onnx", f"{root}/other/model.onnx.data"],
        [f"{root}/model.onnx", "http://127.0.0.1:1/model.onnx.data"],
        ["/etc/hostname"],
        ["s3://no/../key", f"{root}/model.onnx"],
    ):
        with pytest.raises(RequestError, match="Unable to load model"):
            weights.folder(group)
