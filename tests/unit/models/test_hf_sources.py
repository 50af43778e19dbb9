"""Where text models of transformers come from: docs/protocol.md, section 7.3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedding.errors import RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.loader import estimate_bytes, load_model
from tests.support.harmful import Harmful
from tests.support.hf import CPU, bert, hub, hub_options, load, refusal, same, spec, vectors  # noqa: F401
from tests.support.hub_host import HubHost
from tests.support.s3 import bucket, s3_client, s3_server  # noqa: F401
from tests.support.tiny_bert import TEXTS, WIDTH, archived, reference, save_bert

# --- Where it comes from ---


@pytest.mark.parametrize(("name", "under"), [
    ("model.zip", ""),
    ("model.zip", "my-model/"),
    ("model.tar", ""),
    ("model.tar.gz", "my-model/"),
])  # fmt: skip
def test_archives(tmp_path: Path, bert: Path, name: str, under: str) -> None:
    options = LoadOptions(model_sources=("path",), path_roots=(tmp_path,), cache_dir=tmp_path / "cache")
    archive = archived(bert, tmp_path / name, under)
    same(vectors(load(archive, options)), reference(bert, TEXTS, "mean"))


@pytest.fixture
def expected(tmp_path: Path, hub: HubHost) -> np.ndarray:
    return reference(tmp_path / "hub-model", TEXTS, "cls")


@pytest.mark.parametrize("properties", [
    {"name": "st/cls"},
    {"name": "st/old"},
    {"modelLocation": {"hf": {"repoId": "st/cls"}}},
    {"model_location": {"hf": {"repo_id": "st/packed", "filename": "model.zip"}}},
    {"name": "st/cls", "modelLocation": {"hf": {"repoId": "st/empty"}}},
    {"name": "st/cls", "url": "http://127.0.0.1:1/never-asked.zip"},
])  # fmt: skip
def test_repositories(hub: HubHost, hub_options: LoadOptions, expected: np.ndarray, properties: dict[str, Any]) -> None:
    same(vectors(load_model(spec(**properties), CPU, hub_options)), expected)
    assert hub.transfers("onnx/model.onnx") == hub.transfers("tf_model.h5") == 0
    assert "st/old" in properties.values() or hub.transfers("pytorch_model.bin") == 0


def test_an_archive_behind_a_url(hub: HubHost, hub_options: LoadOptions, expected: np.ndarray) -> None:
    url = f"{hub.url}/st/packed/resolve/main/model.zip"
    same(vectors(load_model(spec(url=url), CPU, hub_options)), expected)


def test_an_archive_in_s3(tmp_path: Path, bert: Path, s3_client: Any, bucket: str) -> None:
    archive = archived(bert, tmp_path / "model.zip")
    s3_client.put_object(Bucket=bucket, Key="texts/model.zip", Body=archive.read_bytes())
    options = LoadOptions(model_sources=("s3",), cache_dir=tmp_path / "cache")
    place = {"s3": {"Bucket": bucket, "Key": "texts/model.zip"}, "authRequired": True}
    auth = {"s3": {"aws_access_key_id": "AKIA", "aws_secret_access_key": "secret"}}
    same(vectors(load_model(spec(auth, modelLocation=place), CPU, options)), reference(bert, TEXTS, "mean"))
    assert "no modelAuth for s3" in refusal(options, modelLocation=place)


def test_a_gated_repository(hub: HubHost, hub_options: LoadOptions, expected: np.ndarray) -> None:
    assert "st/gated" in refusal(hub_options, name="st/gated")
    place = {"hf": {"repoId": "st/gated"}, "authRequired": True}
    assert "modelAuth" in refusal(hub_options, modelLocation=place)
    auth = {"hf": {"token": "hf_secret"}}
    same(vectors(load_model(spec(auth, name="st/gated"), CPU, hub_options)), expected)
    same(vectors(load_model(spec(auth, modelLocation=place), CPU, hub_options)), expected)


def test_a_repository_without_a_model(hub: HubHost, hub_options: LoadOptions) -> None:
    assert "no weights" in refusal(hub_options, name="st/empty")


def test_a_source_that_the_operator_does_not_allow(tmp_path: Path, bert: Path) -> None:
    options = LoadOptions(model_sources=("registry",), cache_dir=tmp_path)
    sources: list[dict[str, Any]] = [{"name": "st/cls"}, {"localpath": str(bert)}, {"url": "http://example.com/a.zip"}]
    for properties in sources:
        assert "model_sources" in refusal(options, **properties)
        with pytest.raises(RequestError, match="model_sources"):
            estimate_bytes(spec(**properties), CPU, options)


# --- Code of a repository ---


CODE = """
import torch
from transformers import BertModel

class Doubled(BertModel):
    def forward(self, **inputs):
        return (2 * super().forward(**inputs)[0],)
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = save_bert(tmp_path / "with-code")
    (folder / "doubled.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "doubled.Doubled"}}
    (folder / "config.json").write_text(json.dumps(config))
    for width in (8, 16):
        place = folder / f"2_Dense_{width}"
        place.mkdir()
        torch.manual_seed(width)
        weights = {"linear.weight": torch.randn(width, WIDTH), "linear.bias": torch.randn(width)}
        torch.save(weights, place / "pytorch_model.bin")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def trusting(tmp_path: Path) -> LoadOptions:
    return LoadOptions(
        model_sources=("path",), path_roots=(tmp_path,), cache_dir=tmp_path / "cache", trust_remote_code=True
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", [".", "2_Dense_8"])
def test_pickled_code_is_not_run(tmp_path: Path, with_code: Path, place: str, zipped: bool) -> None:
    """Neither in a model's own weights nor in those of stella's projection; not even where its Python code may run."""
    trace = tmp_path / "trace"
    torch.save(load_file(with_code / "model.safetensors"), with_code / "pytorch_model.bin")
    (with_code / "model.safetensors").unlink()
    file = with_code / place / "pytorch_model.bin"
    torch.save({"linear.weight": Harmful(trace)}, file, _use_new_zipfile_serialization=zipped)
    message = refusal(
        trusting(tmp_path), localpath=str(with_code), type="hf_stella", trustRemoteCode=True, dimensions=8
    )
    assert message.startswith("Unable to load model 'mine': ")
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()


def test_code_runs_if_asked_for_and_allowed(tmp_path: Path, with_code: Path) -> None:
    plain = reference(with_code, TEXTS, "mean", trust_remote_code=False)
    same(vectors(load(with_code, trusting(tmp_path), trustRemoteCode=True)), 2 * plain)
    same(vectors(load(with_code, trusting(tmp_path))), plain)
    same(vectors(load(with_code)), plain)
    assert "trust_remote_code" in refusal(localpath=str(with_code), trustRemoteCode=True)


def test_stella(tmp_path: Path, with_code: Path) -> None:
    options = trusting(tmp_path)
    common: dict[str, Any] = {"type": "hf_stella", "trustRemoteCode": True}
    for width in (8, 16):
        model = load(with_code, options, dimensions=width, **common)
        dense = torch.load(with_code / f"2_Dense_{width}" / "pytorch_model.bin", weights_only=True)
        plain = 2 * reference(with_code, TEXTS, "mean", trust_remote_code=False)
        same(
            model.encode_texts([model.tokenize(TEXTS)]),
            plain @ dense["linear.weight"].numpy().T + dense["linear.bias"].numpy(),
        )
    assert "2_Dense_24" in refusal(options, localpath=str(with_code), **common)
    assert "trustRemoteCode" in refusal(options, localpath=str(with_code), type="hf_stella")
    assert "trust_remote_code" in refusal(localpath=str(with_code), **common)
