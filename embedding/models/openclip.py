"""open_clip models: where their weights come from, how pictures are prepared for them, and the forward pass.

Source: protocol sheet, section 7.1, and open_clip's own factory, which does the loading.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.pretrained import is_pretrained_cfg

from embedding.errors import Fault, RequestError
from embedding.image_spec import ImageSpec
from embedding.models.model import Pixels, Rows
from embedding.models.properties import OpenClipProperties
from embedding.models.spec import ModelInfo, ModelSpec

_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PRESETS: dict[str, ImageSpec] = {
    "OpenCLIP": ImageSpec((224, 224), _OPENAI_MEAN, _OPENAI_STD, "bicubic", "shortest"),
    "OpenAI": ImageSpec((224, 224), _OPENAI_MEAN, _OPENAI_STD, "bicubic", "shortest"),
    "SigLIP": ImageSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash"),
    "CLIPA": ImageSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "squash"),
}
_architectures_lock = threading.Lock()


def add_architectures(folder: Path) -> None:
    """Makes the open_clip model configs (`ARCH.json`) of a folder known under their file names.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"architectures: '{folder}' is not a folder")
    with _architectures_lock:
        open_clip.add_model_config(folder)


add_architectures(Path(str(resources.files("embedding.assets"))))


class OpenClipModel:
    """A loaded open_clip model on its device."""

    def __init__(self, info: ModelInfo, module: torch.nn.Module, tokenizer: Any) -> None:
        self.info = info
        self._module = module
        self._tokenizer = tokenizer
        self._device = torch.device(info.device)
        self._dtype = next(p.dtype for p in module.visual.parameters() if p.is_floating_point())  # type: ignore[union-attr, operator]
        if info.image is not None:
            # uint8/255, minus mean, over std, folded into one multiplication and one addition.
            mean, std = torch.tensor(info.image.mean), torch.tensor(info.image.std)
            self._scale = (1 / (255 * std)).view(1, 3, 1, 1).to(self._device)
            self._shift = (-mean / std).view(1, 3, 1, 1).to(self._device)

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 tokens, shape (n, context length); long texts are cut off, as open_clip does."""
        tokens: torch.Tensor = self._tokenizer(list(texts))
        return tokens

    @torch.inference_mode()
    def encode_texts(self, tokens: Sequence[torch.Tensor]) -> Rows:
        """See `Model.encode_texts`."""
        batch = torch.cat(list(tokens)).to(self._device)
        return _rows(self._module.encode_text(batch))  # type: ignore[operator]

    @torch.inference_mode()
    def encode_images(self, pixels: Sequence[Pixels]) -> Rows:
        """See `Model.encode_images`."""
        batch = torch.from_numpy(pixels[0] if len(pixels) == 1 else np.concatenate(pixels))
        images = batch.to(self._device).to(torch.float32).mul_(self._scale).add_(self._shift)
        return _rows(self._module.encode_image(images.to(self._dtype)))  # type: ignore[operator]


def load_openclip(spec: ModelSpec, properties: OpenClipProperties, device: torch.device) -> OpenClipModel:
    """Loads a model by the first of the sheet's rules that fits: checkpoint, hub repository, pretrained tag.

    Raises:
        RequestError: REFUSED, with the reason.
    """
    try:
        module, tokenizer, image = _load(properties, device)
    except RequestError:
        raise
    except Exception as error:
        # open_clip, torch, safetensors and the hub client raise some twenty types between them.
        raise RequestError(Fault.REFUSED, f"Unable to load model '{spec.name}': {_reason(error)}") from None
    module.eval().requires_grad_(False)
    info = ModelInfo(
        name=spec.name,
        key=spec.key,
        device=str(device),
        dimensions=properties.dimensions,
        image=image,
        properties_json=spec.properties_json,
        nbytes=sum(t.nbytes for t in (*module.parameters(), *module.buffers())),
    )
    return OpenClipModel(info, module, tokenizer)


def _load(properties: OpenClipProperties, device: torch.device) -> tuple[torch.nn.Module, Any, ImageSpec]:
    if properties.has_checkpoint:
        architecture = _architecture(properties.name)
        checkpoint = _checkpoint(properties)
        module = _create(architecture, str(checkpoint), device, precision=properties.precision, jit=properties.jit)
        return module, _tokenizer(architecture, properties.tokenizer), _preset(properties)
    if properties.name.startswith("hf-hub:"):
        module = _create(properties.name, None, device)
        return module, open_clip.get_tokenizer(properties.name), _own_preprocessing(module)
    architecture, tag = _pretrained_tag(properties.name)
    module = _create(architecture, tag, device)
    return module, open_clip.get_tokenizer(architecture), _own_preprocessing(module)


def _create(name: str, pretrained: str | None, device: torch.device, **options: Any) -> torch.nn.Module:
    with warnings.catch_warnings():
        # OpenAI tags on architectures without quick_gelu warn on every load; Marqo's registry offers both on purpose.
        warnings.simplefilter("ignore")
        module: torch.nn.Module = open_clip.create_model(
            name,
            pretrained,
            device=device,
            # Without it a repository whose weights are missing gives a model with random ones.
            require_pretrained=True,
            # The towers' own base weights would be downloaded only to be overwritten by the checkpoint.
            pretrained_text=False,
            **options,
        )
    return module


def _architecture(name: str) -> str:
    """open_clip's name of an architecture: `ViT-B/32` is a legacy spelling of `ViT-B-32`."""
    architecture = name if name.startswith("hf-hub:") else name.replace("/", "-")
    if not architecture.startswith("hf-hub:") and open_clip.get_model_config(architecture) is None:
        raise RequestError(
            Fault.REFUSED,
            f"Invalid model properties: name '{name}' is not an architecture that open_clip knows, such as ViT-B-32",
        )
    return architecture


def _pretrained_tag(name: str) -> tuple[str, str]:
    parts = name.split("/")
    # The tag is checked against open_clip's table, since open_clip itself would also take a path of this machine.
    if len(parts) == 3 and parts[0] == "open_clip" and is_pretrained_cfg(parts[1], parts[2]):
        return parts[1], parts[2]
    raise RequestError(
        Fault.REFUSED,
        f"Invalid model properties: name '{name}' is neither 'open_clip/ARCHITECTURE/PRETRAINED' with a "
        "pretrained tag that open_clip knows, nor 'hf-hub:OWNER/REPOSITORY'; for your own checkpoint give "
        "`localpath`, `url` or `modelLocation`",
    )


def _checkpoint(properties: OpenClipProperties) -> Path:
    if properties.localpath is None:
        raise RequestError(
            Fault.REFUSED, "Unable to load model: checkpoints by `url` or `modelLocation` are not served yet"
        )
    path = Path(properties.localpath)
    if not path.is_file():
        raise RequestError(Fault.REFUSED, f"Unable to load model: localpath '{path}' is not a file here")
    return path


def _tokenizer(architecture: str, hf_tokenizer: str | None) -> Any:
    if hf_tokenizer is None:
        return open_clip.get_tokenizer(architecture)
    context_length = open_clip.get_model_config(architecture)["text_cfg"].get("context_length", 77)
    return open_clip.tokenizer.HFTokenizer(hf_tokenizer, context_length=context_length, clean="whitespace")


def _preset(properties: OpenClipProperties) -> ImageSpec:
    preset = PRESETS[properties.preset]
    return ImageSpec(
        size=(properties.size, properties.size),
        mean=properties.mean or preset.mean,
        std=properties.std or preset.std,
        interpolation=preset.interpolation,
        resize_mode=preset.resize_mode,
    )


def _own_preprocessing(module: torch.nn.Module) -> ImageSpec:
    config: dict[str, Any] = module.visual.preprocess_cfg  # type: ignore[union-attr, assignment]
    size = config["size"]
    return ImageSpec(
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
        fill_color=config.get("fill_color", 0),
    )


def _rows(vectors: torch.Tensor) -> Rows:
    rows: Rows = vectors.to(torch.float32).cpu().numpy()
    return rows


def _reason(error: Exception) -> str:
    """The first line that says something: a state_dict mismatch lists every key."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}"
