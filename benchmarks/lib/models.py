"""The models of all benchmarks: open_clip architectures with random weights from a seed.

A forward pass takes as long with random weights as with trained ones, and their vectors differ enough to be compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.places import OUT

FOLDER = OUT / "models"
SEED = 7
SMALL_CONFIG = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "layers": 4, "width": 192, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 192, "heads": 3, "layers": 4},
}
TINY_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "patch_size": 112},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One model on disk.

    Args:
        architecture: open_clip's name for it. If open_clip has none, a config of that name lies beside the weights.
        path: the safetensors file.
        dimensions: length of its vectors.
    """

    architecture: str
    path: Path
    dimensions: int

    @property
    def properties(self) -> dict[str, Any]:
        """Marqo's `modelProperties` for it."""
        return {
            "name": self.architecture,
            "dimensions": self.dimensions,
            "localpath": str(self.path),
            "type": "open_clip",
        }


def small_clip() -> Checkpoint:
    """A CLIP of 224 pixels, patches of 32, width 192, depth 4: so cheap that everything else shows in a measurement."""
    return _own("bench-small", SMALL_CONFIG)


def tiny_clip() -> Checkpoint:
    """A CLIP of 224 pixels whose forward pass costs next to nothing: stands for encoders that are never the limit."""
    return _own("bench-tiny", TINY_CONFIG)


def vit_b_32() -> Checkpoint:
    """The size that is used most: encoding costs more than everything else."""
    return _checkpoint("ViT-B-32", 512)


def vit_l_14() -> Checkpoint:
    """A large model, for GPUs."""
    return _checkpoint("ViT-L-14", 768)


def loaded(checkpoint: Checkpoint, device: str = "cpu", precision: str | None = None) -> Any:
    """The model as our encoder loads it (`embedding.models.model.Model`), in this process.

    Args:
        checkpoint: the model.
        device: torch's name of it.
        precision: as a request would ask for it; None leaves it to the device.
    """
    import torch

    from embedding.models.files.options import LoadOptions
    from embedding.models.loader import load_model
    from embedding.models.openclip.model import add_architectures
    from embedding.models.spec import ModelSpec
    from embedding.protocol import ModelConfig

    add_architectures(FOLDER)
    properties = checkpoint.properties | ({} if precision is None else {"precision": precision})
    config = ModelConfig(model_name=checkpoint.architecture, model_properties=properties)
    options = LoadOptions(model_sources=("path",), path_roots=(checkpoint.path.parent,))
    return load_model(ModelSpec.from_config(config), torch.device(device), options)


def _own(architecture: str, config: dict[str, Any]) -> Checkpoint:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{architecture}.json").write_text(json.dumps(config))
    return _checkpoint(architecture, config["embed_dim"])


def _checkpoint(architecture: str, dimensions: int) -> Checkpoint:
    path = FOLDER / f"{architecture}.safetensors"
    if not path.exists():
        import open_clip
        import torch
        from safetensors.torch import save_file

        FOLDER.mkdir(parents=True, exist_ok=True)
        open_clip.add_model_config(FOLDER)
        torch.manual_seed(SEED)
        model = open_clip.create_model(architecture, pretrained=None, pretrained_text=False)
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return Checkpoint(architecture, path, dimensions)
