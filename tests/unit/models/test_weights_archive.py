"""Archives of a whole repository, hostile and broken ones too, and local files that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.errors import RequestError
from embedding.models.files.tree import Tree
from embedding.models.files.weights import Weights
from embedding.models.properties import HfProperties
from tests.support.cost import cost
from tests.support.hostile_archives import BROKEN, ESCAPED, FILES, REFUSED, TAKEN, plain_tar, plain_zip
from tests.support.weights import CONTENT, left, options


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"model.pt": CONTENT}) as host:
        yield host


def hf_properties(**location: Any) -> HfProperties:
    return HfProperties.model_validate({"type": "hf", "dimensions": 8, **location})


ARCHIVES = {
    "model.zip": plain_zip(FILES.items()),
    "model.tar": plain_tar(FILES, "w"),
    "model.tar.gz": plain_tar(FILES),
    "model.tar.xz": plain_tar(FILES, "w:xz"),
    "nested.tar.gz": plain_tar({f"model/{name}": content for name, content in FILES.items()}),
    "nameless": plain_zip(FILES.items()),
    **{f"odd-{name}": make() for name, make in TAKEN.items()},
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path: Path, host: ImageHost, name: str) -> None:
    host.files[name] = ARCHIVES[name]
    weights = Weights(options(tmp_path))
    folder = weights.archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert weights.archive(hf_properties(url=host.url(f"/ok/{name}"))) == folder
    assert len(host.requests) == 1


@pytest.fixture(scope="module")
def hostile() -> dict[str, bytes]:
    """All of them by name, of which some take a second to make."""
    return {name: make() for name, (make, _) in REFUSED.items()} | {name: make() for name, make in BROKEN.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_archives(tmp_path: Path, host: ImageHost, hostile: dict[str, bytes], name: str) -> None:
    reason = REFUSED[name][1]
    host.files[name] = hostile[name]
    weights = Weights(options(tmp_path, max_checkpoint_bytes=10_000_000))
    with pytest.raises(RequestError, match=f"Unable to load model: the archive .*{reason}"):
        weights.archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert not list(tmp_path.rglob(ESCAPED))
    assert not list(Path("/tmp").glob(ESCAPED))
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_archives(tmp_path: Path, host: ImageHost, hostile: dict[str, bytes], name: str) -> None:
    host.files[name] = hostile[name]
    with pytest.raises(RequestError, match=f"the archive '{name}' is corrupt"):
        Weights(options(tmp_path)).archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert left(tmp_path) == []


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    """Also not if something else puts it there meanwhile."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with Tree(tmp_path / "new") as tree:
        tree.folder("model")
        (tmp_path / "new" / "model").rmdir()
        (tmp_path / "new" / "model").symlink_to(outside)
        with pytest.raises(OSError), tree.file("model/config.json") as file:  # noqa: PT011
            file.write(b"x")
    assert not list(outside.iterdir())


def test_what_hostile_archives_cost(tmp_path: Path, hostile: dict[str, bytes]) -> None:
    """With the production limit of bytes: it is the ratio that ends the bombs."""
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    costs = cost("tests.support.weights:unpack_archive", [str(path) for path in sorted(tmp_path.iterdir())])
    for path, one in costs.items():
        assert one.result.startswith(("RequestError", "BrokenArchive")), (path, one)
        assert one.peak_mib < 200, (path, one)
        assert one.stall_s < 0.25, (path, one)
        assert one.seconds < 10, (path, one)


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
