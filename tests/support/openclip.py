"""A small open_clip model in every file format, hosts that serve it, and the comparison with open_clip itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from benchmarks.lib.image_host import ImageHost
from embedding.errors import Fault, RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from embedding.models.openclip.model import OpenClipModel, add_architectures, load_openclip
from embedding.models.properties import OpenClipProperties
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from tests.support.hub_host import HubHost

CPU = torch.device("cpu")
ARCHITECTURE, OTHER = "source-B-16", "source-other"
DIMENSIONS, SIZE = 24, 32
TEXTS = ["a red circle", "", "ein Bär", "WORD &amp; word " * 50]
TOKEN = "hf_topsecrettoken"
SECRET = "topsecretkey/abcdefghijklmnop"
HUB_PREPROCESSING = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash"}


def architecture(width: int = 32) -> dict[str, Any]:
    return {
        "embed_dim": DIMENSIONS,
        "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": width, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Architectures and one model in every format."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(architecture()))
    (folder / f"{OTHER}.json").write_text(json.dumps(architecture(48)))
    add_architectures(folder)
    torch.manual_seed(1)
    model = open_clip.create_model(ARCHITECTURE, require_pretrained=False)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    torch.save(weights, folder / "plain.pt")
    torch.save(weights, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "plain.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "parallel.bin")
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "half.safetensors")
    torch.save(trained(model), folder / "training.pt")
    return folder


def trained(model: torch.nn.Module) -> dict[str, Any]:
    """What open_clip's training writes after an epoch, the optimiser's state included."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    return {"epoch": 3, "name": "run", "state_dict": weights, "optimizer": optimizer.state_dict()}


@pytest.fixture
def options(tmp_path: Path, folder: Path) -> LoadOptions:
    return LoadOptions(
        model_sources=("registry", "hub", "url", "s3", "path"),
        path_roots=(folder,),
        cache_dir=tmp_path,
        allowed_networks="127.0.0.0/8",
    )


@pytest.fixture
def host(folder: Path) -> Iterator[ImageHost]:
    with ImageHost({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}) as host:
        yield host


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    config = {"model_cfg": architecture(), "preprocess_cfg": HUB_PREPROCESSING}
    new = {"open_clip_model.safetensors": (folder / "plain.safetensors").read_bytes()}
    old = {"open_clip_pytorch_model.bin": (folder / "plain.pt").read_bytes()}
    described = {"open_clip_config.json": json.dumps(config).encode()}
    repositories = {"me/new": described | new, "me/old": described | old, "me/gated": described | new, "me/bare": new}
    with HubHost(repositories, gated={"me/gated": TOKEN}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


# --- Loading, and comparing with open_clip ---


def load(
    options: LoadOptions, auth: dict[str, Any] | None = None, device: torch.device = CPU, **properties: Any
) -> OpenClipModel:
    complete = {"name": ARCHITECTURE, "dimensions": DIMENSIONS, "type": "open_clip"} | properties
    config = ModelConfig.model_validate({"model_name": "mine", "modelProperties": complete, "modelAuth": auth})
    spec = ModelSpec.from_config(config)
    return load_openclip(spec, OpenClipProperties.model_validate(complete), device, options, Weights(options))


def refusal(options: LoadOptions, auth: dict[str, Any] | None = None, **properties: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load(options, auth, **properties)
    assert caught.value.fault is Fault.REFUSED
    assert caught.value.__suppress_context__  # or a traceback would show what the message leaves out
    return caught.value.message


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (47, 61, 3), np.uint8))


def pixels(model: OpenClipModel, count: int = 3) -> np.ndarray:
    """Through open_clip's own transform, not normalised. Read-only, as arrays out of Ray's store are."""
    spec = model.info.image
    assert spec is not None
    plain = PreprocessCfg(
        size=spec.size, mean=(0, 0, 0), std=(1, 1, 1), interpolation=spec.interpolation, resize_mode=spec.resize_mode
    )
    transform = image_transform_v2(plain, is_train=False)
    batch = np.stack([(transform(picture(seed)) * 255).round().to(torch.uint8).numpy() for seed in range(count)])
    batch.flags.writeable = False
    return batch


def check(model: OpenClipModel, reference: str | Path, least: float = 0.9999999, **arguments: Any) -> None:
    """Text and image vectors against open_clip's own, from the same files through its own transform."""
    name = ARCHITECTURE if isinstance(reference, Path) else reference
    pretrained = str(reference) if isinstance(reference, Path) else None
    theirs, _, transform = open_clip.create_model_and_transforms(name, pretrained, **arguments)
    theirs.eval()
    images = torch.stack([transform(picture(seed)) for seed in range(3)])
    with torch.inference_mode():
        images = images.to(open_clip.get_input_dtype(arguments.get("precision", "fp32")) or torch.float32)
        expected = theirs.encode_image(images).float().numpy(), theirs.encode_text(tokens()).float().numpy()
    ours = model.encode_images([pixels(model)]), model.encode_texts([model.tokenize(TEXTS)])
    for mine, other in zip(ours, expected, strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == other.shape
        assert cosines(mine, other).min() >= least


@cache
def tokens() -> torch.Tensor:
    tokens: torch.Tensor = open_clip.get_tokenizer(ARCHITECTURE)(TEXTS)
    return tokens


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    rows, others = rows.astype(np.float64), others.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return np.asarray((rows * others).sum(axis=1) / norms)


@pytest.fixture
def words(hub: HubHost, tmp_path: Path) -> Path:
    """A small transformers tokenizer and the config of a text model, also in the hub's repository `me/words`."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = ["<pad>", "<unk>", "</s>", "a", "red", "circle", "WORD", "word", "&"]
    small = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    small.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "words"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=small, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.RobertaConfig(vocab_size=16, pad_token_id=0, **shape).save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories = {**hub.repositories, "me/words": files}
    return folder
