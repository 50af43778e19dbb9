"""Tiny open_clip checkpoints made here, and the loading of them. No hub is reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from embedding.errors import Fault, RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.loader import load_model
from embedding.models.model import Model
from embedding.models.openclip.model import add_architectures
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig

ARCHITECTURE, OTHER = "tiny-B-16", "tiny-other"
DIMENSIONS, SIZE = 24, 32
CPU = torch.device("cpu")
ANY_LOCAL_FILE = LoadOptions(model_sources=("registry", "hub", "path"), path_roots=(Path("/"),))
"""What a server never has: any file of this machine may be loaded."""


def architecture(width: int) -> dict[str, Any]:
    return {
        "embed_dim": DIMENSIONS,
        "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": width, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints are; its architectures are known to open_clip, and to it alone."""
    folder = tmp_path_factory.mktemp("models")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(architecture(32)))
    (folder / f"{OTHER}.json").write_text(json.dumps(architecture(48)))
    add_architectures(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    """open_clip's own model, untrained; its weights are in the checkpoints."""
    torch.manual_seed(0)
    model: torch.nn.Module = open_clip.create_model(ARCHITECTURE, require_pretrained=False).eval()
    return model


Save = Callable[[dict[str, torch.Tensor], Path], None]
FORMATS: dict[str, Save] = {
    "plain.pt": torch.save,
    "plain.safetensors": save_file,
    "nested.pth": lambda weights, path: torch.save({"epoch": 1, "state_dict": weights}, path),
    "parallel.bin": lambda weights, path: torch.save({f"module.{name}": w for name, w in weights.items()}, path),
}


@pytest.fixture(scope="module")
def checkpoint(folder: Path, reference: torch.nn.Module) -> Path:
    """All formats are beside it."""
    weights = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    for name, save in FORMATS.items():
        save(weights, folder / name)
    return folder / "plain.safetensors"


def spec(**properties: Any) -> ModelSpec:
    """A request's model under the label `mine`."""
    complete = {"name": ARCHITECTURE, "dimensions": DIMENSIONS, "type": "open_clip", "size": SIZE} | properties
    return ModelSpec.from_config(ModelConfig(model_name="mine", model_properties=complete))


def load(checkpoint: Path, **properties: Any) -> Model:
    return load_model(spec(localpath=str(checkpoint), **properties), CPU, ANY_LOCAL_FILE)


def refusal(**properties: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_model(spec(**properties), CPU, ANY_LOCAL_FILE)
    assert caught.value.fault is Fault.REFUSED
    assert len(caught.value.message) < 2000
    return caught.value.message
