"""What operators allow: where files of weights may come from, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from embedding.errors import RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from tests.support.ingress import demo_checkpoint
from tests.support.weights import ALL, CONTENT, options, properties, refusal

LOCATIONS: dict[str, dict[str, Any]] = {
    "url": {"url": "http://127.0.0.1:1/model.pt"},
    "s3": {"modelLocation": {"s3": {"Bucket": "weights", "Key": "model.pt"}}},
    "hub": {"modelLocation": {"hf": {"repoId": "me/open", "filename": "model.pt"}}},
    "path": {"localpath": "/etc/hostname"},
}


@pytest.mark.parametrize("source", LOCATIONS)
def test_a_source_that_is_not_allowed_names_the_setting(tmp_path: Path, source: str) -> None:
    sources = tuple(name for name in ALL if name != source)
    changes: dict[str, Any] = {"path_roots": ()} if source == "path" else {}
    message = refusal(Weights(options(tmp_path, model_sources=sources, **changes)), **LOCATIONS[source])
    assert "Unable to load model" in message
    assert "model_sources" in message
    assert f"'{source}'" in message


def test_by_default_hub_and_registry_are_allowed(tmp_path: Path) -> None:
    weights = Weights(LoadOptions(cache_dir=tmp_path))
    for source in ("url", "s3", "path"):
        assert "model_sources" in refusal(weights, **LOCATIONS[source])
    weights.check_hub("anybody/anything")
    assert weights.checkpoint(properties(**_localpath_of_demo())).is_file()


def test_the_registry_alone(tmp_path: Path) -> None:
    weights = Weights(LoadOptions(cache_dir=tmp_path, model_sources=("registry",)))
    weights.check_hub("open_clip/ViT-B-32/openai")
    weights.check_hub("hf-hub:Marqo/marqo-fashionCLIP")
    weights.check_hub("sentence-transformers/all-MiniLM-L6-v2")
    for name in ("open_clip/ViT-B-32/nobody-knows", "hf-hub:anybody/anything", "anybody/anything"):
        with pytest.raises(RequestError, match="model_sources"):
            weights.check_hub(name)
    assert weights.checkpoint(properties(**_localpath_of_demo())).is_file()


def test_without_the_registry_its_files_are_closed(tmp_path: Path) -> None:
    weights = Weights(LoadOptions(cache_dir=tmp_path, model_sources=("hub",)))
    assert "model_sources" in refusal(weights, **_localpath_of_demo())


def test_paths_stay_under_their_roots(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "models-not"
    root.mkdir()
    outside.mkdir()
    (root / "model.pt").write_bytes(CONTENT)
    (outside / "model.pt").write_bytes(CONTENT)
    (root / "way-out.pt").symlink_to(outside / "model.pt")
    (root / "way-in.pt").symlink_to(root / "model.pt")
    (root / "folder").symlink_to(outside)
    weights = Weights(options(tmp_path))
    assert weights.checkpoint(properties(localpath=str(root / "way-in.pt"))) == root / "model.pt"
    for path in (outside / "model.pt", root / "way-out.pt", root / "folder/model.pt", f"{root}/../models-not/model.pt"):
        assert "path_roots" in refusal(weights, localpath=str(path))
    # Whether something is there is not told.
    assert refusal(weights, localpath=f"{outside}/model.pt") == refusal(weights, localpath=f"{outside}/none.pt")
    for path in (root / "none.pt", root):
        assert "not a file" in refusal(weights, localpath=str(path))


def test_options_that_make_no_sense() -> None:
    for changes in (
        {"model_sources": ("path",)},
        {"path_roots": ("/models",)},
        {"model_sources": ("path",), "path_roots": ("models",)},
        {"model_sources": ("everywhere",)},
        {"allowed_networks": "somewhere"},
        {"max_checkpoint_bytes": -1},
        {"unheard_of": 1},
    ):
        with pytest.raises(ValidationError):
            LoadOptions(**changes)


def test_the_environment_says_where_downloads_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARQO_MODEL_CACHE_PATH", str(tmp_path / "mine"))
    assert LoadOptions().cache_dir == tmp_path / "mine"


def _localpath_of_demo() -> dict[str, Any]:
    return {"localpath": demo_checkpoint()["localpath"]}
