"""A small text model of transformers, a hub that has it in many forms, and the loading of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedding.errors import Fault, RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.hf.staging import staged_tokenizer
from embedding.models.loader import load_model
from embedding.models.model import Model
from embedding.models.spec import ModelSpec
from embedding.models.tokenizers.process import Loading, TokenizerProcess
from embedding.protocol import ModelConfig
from tests.support.hub_host import HubHost
from tests.support.models import ANY_LOCAL_FILE
from tests.support.tiny_bert import TEXTS, WIDTH, archived, files_of, save_bert

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a pooling file."""
    return save_bert(tmp_path_factory.mktemp("bert") / "plain")


def spec(auth: dict[str, Any] | None = None, **properties: Any) -> ModelSpec:
    complete = {"type": "hf", "dimensions": WIDTH} | properties
    config = {"model_name": "mine", "model_properties": complete, "model_auth": auth}
    return ModelSpec.from_config(ModelConfig.model_validate(config))


def load(folder: Path, options: LoadOptions = ANY_LOCAL_FILE, **properties: Any) -> Model:
    return load_model(spec(localpath=str(folder), **properties), CPU, options)


def refusal(options: LoadOptions = ANY_LOCAL_FILE, **properties: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_model(spec(**properties), CPU, options)
    assert caught.value.fault is Fault.REFUSED
    return caught.value.message


def vectors(model: Model, texts: list[str] = TEXTS) -> np.ndarray:
    """As several requests that share one forward pass."""
    rows = model.encode_texts([model.tokenize(texts[:1]), model.tokenize(texts[1:])])
    assert rows.dtype == np.float32
    assert rows.shape == (len(texts), WIDTH)
    return rows


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    """A hub with sentence-transformers repositories: with all kinds of weights, with old ones, and a gated one."""
    folder = save_bert(tmp_path / "hub-model", pooling="cls")
    files = files_of(folder) | {"onnx/model.onnx": b"o" * 5000, "pytorch_model.bin": b"x" * 5000, "tf_model.h5": b"h"}
    weights = tmp_path / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), weights)
    old = {name: content for name, content in files_of(folder).items() if name != "model.safetensors"}
    old["pytorch_model.bin"] = weights.read_bytes()
    packed = {"model.zip": archived(folder, tmp_path / "model.zip").read_bytes(), "model.pt": b"x"}
    repositories = {
        "st/cls": files,
        "st/old": old,
        "st/gated": files,
        "st/packed": packed,
        "st/empty": {"a.json": b"{}"},
    }
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with HubHost(repositories, gated={"st/gated": "hf_secret"}) as host:
        monkeypatch.setenv("HF_ENDPOINT", host.url)
        yield host


@pytest.fixture
def hub_options(tmp_path: Path) -> LoadOptions:
    return LoadOptions(
        model_sources=("hub", "url"), cache_dir=tmp_path / "cache", allowed_networks="127.0.0.0/8", backend="torch"
    )


def tokenizer(folder: Path, options: LoadOptions) -> TokenizerProcess:
    """The tokenizer of a repository, in a process of its own."""
    return TokenizerProcess(Loading(partial(staged_tokenizer, folder), 128), options)
