"""open_clip models: built by open_clip itself from the files that a recipe names, and the forward pass."""

from __future__ import annotations

import copy
import json
import tempfile
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch

from embedding.errors import Fault, RequestError
from embedding.image_spec import ImageSpec
from embedding.models.cpu.capabilities import has_bf16
from embedding.models.cpu.packing import Packing
from embedding.models.files.checkpoint import BrokenCheckpoint, Kind, check_readable, checkpoint_kind
from embedding.models.files.failure import described, is_out_of_memory, named, unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from embedding.models.fingerprint import Described
from embedding.models.hf.config_checks import check_sizes
from embedding.models.model import Pixels, Rows
from embedding.models.openclip.buffers import gather
from embedding.models.openclip.config_checks import check_openclip_sizes
from embedding.models.openclip.recipe import PRESETS, Recipe, find_recipe
from embedding.models.openclip.towers import Normalization, image_encoder, text_encoder
from embedding.models.properties import OpenClipProperties
from embedding.models.spec import ModelInfo, ModelSpec

__all__ = ["PRESETS", "OpenClipModel", "add_architectures", "load_openclip"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PROBE_TEXTS = ("a photo of a cat", "", "word " * 100)
_STAGED: dict[Kind, str] = {"safetensors": "open_clip_model.safetensors", "pickle": "open_clip_pytorch_model.bin"}
_architectures_lock = threading.Lock()


def add_architectures(folder: Path) -> None:
    """Registers the model configs (`ARCH.json`) of a folder with open_clip, under their file names.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"architectures: '{folder}' is not a folder")
    with _architectures_lock:
        open_clip.add_model_config(folder)


add_architectures(Path(str(resources.files("embedding.assets"))))


class OpenClipModel:
    """A loaded open_clip model on its device.

    Args:
        info: its description.
        module: from open_clip.
        tokenizer: from open_clip.
        precision: "fp32", "fp16" or "bf16". On a GPU the module was built for it; on a CPU one of fp32 is taken for
            bf16, too, and only its linear layers compute in that.
    """

    def __init__(self, info: ModelInfo, module: torch.nn.Module, tokenizer: Any, precision: str) -> None:
        self._described = Described(module)
        self._device = torch.device(info.device)
        on_cpu = self._device.type == "cpu"
        self._packing = Packing(torch.bfloat16 if on_cpu and precision == "bf16" else None)
        self._tokenizer = tokenizer
        self._precision = precision
        self._encode_text = text_encoder(module, self.tokenize(PROBE_TEXTS).to(self._device), self._packing)
        if info.image is not None:
            dtype = torch.float32 if self._packing.dtype else _DTYPES[precision]
            normalization = Normalization(info.image, self._device, dtype)
            probe = _probe(info.image.size).to(self._device)
            self._encode_image = image_encoder(module, normalization, probe, self._packing)

        self.info = replace(info, nbytes=self._described.nbytes + self._packing.nbytes)

    @property
    def tokenize_executor(self) -> Executor | None:
        """See `Model.tokenize_executor`."""
        return getattr(self._tokenizer, "thread", None)

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 tokens, shape (n, context length); long texts are cut off, as in open_clip."""
        tokens: torch.Tensor = self._tokenizer(list(texts))
        return tokens

    @torch.inference_mode()
    def encode_texts(self, tokens: Sequence[torch.Tensor]) -> Rows:
        """See `Model.encode_texts`."""
        return _rows(self._encode_text(torch.cat(list(tokens)).to(self._device)))

    @torch.inference_mode()
    def encode_images(self, pixels: Sequence[Pixels | torch.Tensor]) -> Rows:
        """See `Model.encode_images`. Also takes arrays that `staged` has copied to the GPU."""
        return _rows(self._encode_image(self._one_batch(pixels)))

    def _one_batch(self, pixels: Sequence[Pixels | torch.Tensor]) -> torch.Tensor:
        arrays = [one for one in pixels if isinstance(one, np.ndarray)]
        if len(arrays) == len(pixels):
            return gather(arrays, pinned=self._device.type == "cuda").to(self._device, non_blocking=True)
        # `torch.tensor` copies: arrays may be read-only, which torch does not support.
        return torch.cat(
            [one if isinstance(one, torch.Tensor) else torch.tensor(one).to(self._device) for one in pixels]
        )

    @cached_property
    def fingerprint(self) -> str:
        """See `Model.fingerprint`."""
        facts = {
            "image": None if self.info.image is None else asdict(self.info.image),
            "precision": self._precision,
            "device": self._device.type,
            "tokens": self.tokenize(["The quick brown fox, 42 °C – fingerprint"]).tolist(),
        }
        return self._described.fingerprint(facts, self._packing.original)


def load_openclip(
    spec: ModelSpec,
    properties: OpenClipProperties,
    device: torch.device,
    options: LoadOptions,
    weights: Weights | None = None,
) -> OpenClipModel:
    """Loads a model by the first rule of docs/protocol.md, section 7.1, that applies: checkpoint, repository, tag.

    Args:
        spec: the request's model.
        properties: its properties, validated.
        device: that it is loaded onto.
        options: the operator's settings.
        weights: gets the files; None makes one from `options`.

    Raises:
        RequestError: REFUSED, with the reason.
    """
    try:
        return _load(spec, properties, device, options, weights or Weights(options))
    except Exception as error:
        # open_clip, torch, safetensors, transformers and the hub's client raise about twenty types of errors.
        raise named(error, spec.name) from None


def precision_of(recipe: Recipe, device: torch.device, options: LoadOptions) -> str:
    """In what a model computes on a device: the request's choice, else the operator's; "bf16" only where it can be."""
    if device.type != "cpu":
        return recipe.precision or options.cuda_precision
    precision = recipe.precision or options.cpu_precision
    # A scripted module's layers cannot be replaced.
    return "fp32" if precision == "bf16" and (recipe.jit or not has_bf16()) else precision


def _load(
    spec: ModelSpec, properties: OpenClipProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> OpenClipModel:
    recipe = find_recipe(properties, spec.auth, weights)
    precision = precision_of(recipe, device, options)
    built = "fp32" if device.type == "cpu" and precision == "bf16" else precision
    module = _create(recipe, built, device, weights)
    try:
        tokenizer = recipe.make_tokenizer(options)
    except RequestError:
        raise
    except Exception as error:
        raise unloadable(f"its tokenizer cannot be used: {described(error)}") from None
    image = recipe.image or _own_preprocessing(module)
    return OpenClipModel(ModelInfo.of(spec, device, properties.dimensions, image, 0), module, tokenizer, precision)


def _create(recipe: Recipe, precision: str, device: torch.device, weights: Weights) -> torch.nn.Module:
    """Loads with open_clip. If that fails, reads the file again, to tell a damaged file from one that does not fit."""
    try:
        kind = checkpoint_kind(recipe.weights)
        _check_fits(recipe, kind)
        try:
            return _build(recipe, kind, precision, device)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            check_readable(recipe.weights, kind)
            raise unloadable(
                f"the checkpoint '{recipe.weights.name}' does not fit the architecture {recipe.architecture}: "
                + described(error)
            ) from None
    except BrokenCheckpoint as error:
        reason = f"the checkpoint '{recipe.weights.name}' is corrupt: {error}"
        raise weights.unusable([recipe.weights], reason) from None


def _build(recipe: Recipe, kind: Kind, precision: str, device: torch.device) -> torch.nn.Module:
    """Builds the model from a temporary folder with config and weights, so that open_clip reads no other files."""
    with tempfile.TemporaryDirectory() as staged, recipe.whole_config() as model_config:
        folder = Path(staged)
        config = {"model_cfg": model_config, "preprocess_cfg": recipe.preprocessing}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        (folder / _STAGED[kind]).symlink_to(recipe.weights.absolute())
        module: torch.nn.Module = open_clip.create_model(
            f"local-dir:{folder}",
            precision=precision,
            device=device,
            jit=False,
            require_pretrained=True,
            weights_only=True,
        )
    module.eval().requires_grad_(False)
    return _scripted(module) if recipe.jit else module


def _check_fits(recipe: Recipe, kind: Kind) -> None:
    try:
        check_fits(recipe)
    except RequestError:
        check_readable(recipe.weights, kind)  # a damaged file is the more helpful error
        raise


def check_fits(recipe: Recipe) -> None:
    """Compares the architecture with the checkpoint's size, before it is built: a weight takes at least one byte.

    Raises:
        RequestError: REFUSED: the checkpoint cannot hold that many weights.
    """
    checkpoint_bytes = recipe.weights.stat().st_size
    check_openclip_sizes(recipe.config, checkpoint_bytes)
    if recipe.text_tower is not None:
        check_sizes(recipe.text_tower, checkpoint_bytes, None)
    elif "timm_model_name" not in recipe.config["vision_cfg"]:
        return
    try:
        module = meta_module(recipe)
    except Exception as error:
        raise unloadable(f"the architecture {recipe.architecture} cannot be built: {described(error)}") from None
    weights = sum(tensor.numel() for tensor in module.parameters())
    if weights > checkpoint_bytes:
        raise unloadable(
            f"the architecture {recipe.architecture} has {weights} weights, but the checkpoint "
            f"'{recipe.weights.name}' has only {checkpoint_bytes} bytes"
        )


def meta_module(recipe: Recipe) -> torch.nn.Module:
    """Builds a recipe's module on torch's device `meta`: it has shapes, but takes no memory."""
    with recipe.whole_config() as whole:
        config: dict[str, Any] = copy.deepcopy(whole)
        if "timm_model_name" in config["vision_cfg"]:
            config["vision_cfg"]["timm_model_pretrained"] = False
        custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
        kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
        with torch.device("meta"):
            module: torch.nn.Module = kind(**config)
    return module


def _scripted(module: torch.nn.Module) -> torch.nn.Module:
    """Does what open_clip's `jit` does; a module that cannot be scripted is returned unchanged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each call warns that scripting is deprecated
        try:
            scripted: torch.nn.Module = torch.jit.script(module)
        except Exception:
            return module
    return scripted if hasattr(scripted, "encode_image") and hasattr(scripted, "encode_text") else module


def _own_preprocessing(module: torch.nn.Module) -> ImageSpec:
    config: Any = module.visual.preprocess_cfg  # type: ignore[union-attr]
    size = config["size"]
    try:
        return ImageSpec(
            size=(size, size) if isinstance(size, int) else (size[0], size[1]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            resize_mode=config["resize_mode"],
            fill_color=config.get("fill_color", 0),
        )
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RequestError(Fault.REFUSED, f"Unable to load model: its preprocessing is not served: {error}") from None


def _probe(size: tuple[int, int]) -> torch.Tensor:
    """Two pictures of seeded noise."""
    return torch.randint(256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _rows(vectors: torch.Tensor) -> Rows:
    rows: Rows = vectors.to(torch.float32).cpu().numpy()
    return rows
