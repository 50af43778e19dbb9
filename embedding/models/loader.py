"""Loads the model that a request names: gets its files, builds it, checks its vectors and warms it up."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import open_clip
import torch

from embedding.errors import Fault, RequestError
from embedding.models.cpu.packing import bf16_nbytes
from embedding.models.files.failure import described, is_out_of_memory, named
from embedding.models.files.load_time import LoadTime, load_time
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from embedding.models.fingerprint import fingerprint
from embedding.models.hf.model import estimate_hf, load_hf
from embedding.models.hf.repository import hf_folder
from embedding.models.model import Model, Pixels, Rows
from embedding.models.onnx.model import estimate_onnx, fetch_onnx, load_onnx, wants_onnx
from embedding.models.openclip.model import load_openclip, meta_module, precision_of
from embedding.models.openclip.recipe import find_recipe
from embedding.models.properties import (
    HfProperties,
    ModelProperties,
    OpenClipProperties,
    RandomProperties,
    parse_properties,
)
from embedding.models.random import HashName, random_vectors
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.panics import contained
from embedding.shown import shown, without_credentials

logger = logging.getLogger("ray.serve")

DEFAULT_MAXIMA = {"image": 32, "text": 128}
_CPU_BATCHES = (1, 8)
_WARM_UP_TEXT = "a warm-up text, neither long nor short"
# Of the GNU C library: a freed weight is kept for the next one otherwise, which is rarely of the same size.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
_LOW_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


class RandomModel:
    """Marqo's model type `random`: no weights; each vector is drawn from a generator that the text seeds."""

    def __init__(self, info: ModelInfo, hash_name: HashName = "blake3") -> None:
        self.info = info
        self._hash_name: HashName = hash_name

    tokenize_executor = None

    def tokenize(self, texts: Sequence[str]) -> list[str]:
        """Returns the texts unchanged: this model has no tokenizer."""
        return list(texts)

    def encode_texts(self, tokens: Sequence[list[str]]) -> Rows:
        """See `Model.encode_texts`."""
        return random_vectors([text for texts in tokens for text in texts], self.info.dimensions, self._hash_name)

    def encode_images(self, pixels: Sequence[Pixels]) -> Rows:
        """Never called: for such a model all items are embedded as texts, whatever their modality."""
        raise RequestError(Fault.INTERNAL, "a random model takes no pictures")

    @property
    def fingerprint(self) -> str:
        """See `Model.fingerprint`."""
        return fingerprint(torch.nn.Module(), {"random": self._hash_name, "dimensions": self.info.dimensions})


def load_model(
    spec: ModelSpec,
    device: torch.device,
    options: LoadOptions,
    weights: Weights | None = None,
    *,
    maxima: Mapping[str, int] = DEFAULT_MAXIMA,
) -> Model:
    """Loads a model, checks its vectors and warms it up. Blocks until the model is ready.

    Args:
        spec: the request's model.
        device: that it is loaded onto.
        options: the operator's settings.
        weights: gets the files; None makes one from `options`.
        maxima: the largest batch of each tower, by name ("image", "text"), to warm up with.

    Raises:
        RequestError: REFUSED, with the reason.
        MemoryError: the device is full.
    """
    weights = weights or Weights(options)
    try:
        with load_time() as clock:
            with weights.session():
                model = _load(spec, parse_properties(spec.properties), device, options, weights)
            loaded_s = clock.elapsed_s
            _warm_up(model, device, maxima)
            release_memory()
    except BaseException as error:
        if not is_out_of_memory(error):
            # open_clip, transformers, torch and ONNX Runtime raise about thirty types of errors, and panics of Rust
            # code derive from BaseException only.
            raise named(error, spec.name) from None
        full = described(error)
    else:
        _log(model.info, clock, loaded_s)
        return model
    # Raised outside the `except` block: inside, the traceback would keep the failed load's tensors alive.
    raise MemoryError(full)


def fetch_files(spec: ModelSpec, options: LoadOptions, weights: Weights) -> None:
    """Downloads all files of a model. Blocks until they are on the disk; uses almost no CPU time.

    If the model is loaded within the same session of `weights`, the files are not requested from their source again.

    Raises:
        RequestError: REFUSED, with the reason.
    """
    try:
        with load_time(), weights.session():
            _fetch(spec, parse_properties(spec.properties), options, weights)
    except BaseException as error:
        raise named(error, spec.name) from None


def estimate_bytes(
    spec: ModelSpec, device: torch.device, options: LoadOptions, weights: Weights | None = None
) -> int | None:
    """Bytes that a model's weights will take, without loading it; files are downloaded if need be. Blocks.

    Returns:
        None if only loading it can tell.

    Raises:
        RequestError: REFUSED, with the reason, for which loading the model would fail as well.
    """
    weights = weights or Weights(options)
    try:
        with weights.session():
            return _estimate(spec, parse_properties(spec.properties), device, options, weights)
    except RequestError as error:
        raise named(error, spec.name) from None
    except BaseException:
        return None  # loading the model reports the cause better


def device_bytes(device: torch.device) -> int:
    """Total memory of a device in bytes, whether free or in use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def release_memory() -> None:
    """Returns cached memory to the device, so that the next model can allocate large blocks, and to the machine."""
    torch.cuda.empty_cache()  # does nothing in a process that has not used a GPU
    if _TRIM is not None:
        _TRIM(0)


def _log(info: ModelInfo, clock: LoadTime, loaded_s: float) -> None:
    total_s = clock.elapsed_s
    logger.info(
        f"loaded model {shown(without_credentials(info.key))} on {info.device} in {total_s:.2f} s, "
        f"{info.nbytes / 2**20:.1f} MiB; "
        f"of that download {clock.download_s:.2f} s, warm-up {total_s - loaded_s:.2f} s"
    )


def _fetch(spec: ModelSpec, properties: ModelProperties, options: LoadOptions, weights: Weights) -> None:
    if isinstance(properties, RandomProperties):
        return
    if wants_onnx(spec, properties, options):
        fetch_onnx(spec, properties, options, weights)
    elif isinstance(properties, HfProperties):
        hf_folder(properties, options, weights, spec.auth)
    else:
        find_recipe(properties, spec.auth, weights)


def _load(
    spec: ModelSpec, properties: ModelProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> Model:
    if isinstance(properties, RandomProperties):
        return RandomModel(ModelInfo.of(spec, device, properties.dimensions, None, 0), options.random_hash)
    if wants_onnx(spec, properties, options):
        return load_onnx(spec, properties, device, options, weights)
    if isinstance(properties, HfProperties):
        return load_hf(spec, properties, device, options, weights)
    return load_openclip(spec, properties, device, options, weights)


def _estimate(
    spec: ModelSpec, properties: ModelProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> int:
    if isinstance(properties, RandomProperties):
        return 0
    if wants_onnx(spec, properties, options):
        return estimate_onnx(spec, properties, weights)
    if isinstance(properties, HfProperties):
        return estimate_hf(spec, properties, device, options, weights)
    return _estimate_openclip(spec, properties, device, options, weights)


def _estimate_openclip(
    spec: ModelSpec, properties: OpenClipProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> int:
    """Bytes of the architecture, built on torch's device `meta`. The checkpoint's size would be wrong where it also
    holds the optimiser's state, or weights in another precision."""
    recipe = find_recipe(properties, spec.auth, weights)
    precision = precision_of(recipe, device, options)
    module = meta_module(recipe)
    if device.type == "cpu" and precision == "bf16":
        return bf16_nbytes(module)
    if precision in _LOW_PRECISIONS:
        # As open_clip does: it converts all tensors of a model with a timm tower, and only some of other models.
        if "timm_model_name" in recipe.config["vision_cfg"]:
            module.to(_LOW_PRECISIONS[precision])
        else:
            open_clip.convert_weights_to_lp(module, _LOW_PRECISIONS[precision])
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _warm_up(model: Model, device: torch.device, maxima: Mapping[str, int]) -> None:
    """Runs each tower with the batch sizes that requests bring. What is chosen, compiled or allocated on first use must
    not delay a request, and towers that do not work must fail here."""
    info = model.info
    towers: dict[str, Callable[[int], Rows]] = {
        "text": lambda count: model.encode_texts([model.tokenize([_WARM_UP_TEXT] * count)])
    }
    if info.image is not None:
        height, width = info.image.size
        towers["image"] = lambda count: model.encode_images([np.zeros((count, 3, height, width), np.uint8)])
    for tower, encode in towers.items():
        batches = sorted({1, maxima.get(tower, DEFAULT_MAXIMA[tower])}) if device.type == "cuda" else _CPU_BATCHES
        for count in batches:
            _check_rows(info, tower, _encode_once(info, encode, count))


def _encode_once(info: ModelInfo, encode: Callable[[int], Rows], count: int) -> Rows:
    try:
        return contained(encode, count)
    except Exception as error:
        raise RequestError(
            Fault.REFUSED,
            f"Unable to load model '{info.name}': a trial run failed ({described(error)}); "
            f"do size, tokenizer and precision fit the architecture?",
        ) from error


def _check_rows(info: ModelInfo, tower: str, rows: Rows) -> None:
    if rows.shape[1] != info.dimensions:
        raise RequestError(
            Fault.REFUSED,
            f"Invalid model properties: dimensions is {info.dimensions}, but the {tower} encoder of "
            f"'{info.name}' gives vectors of {rows.shape[1]}",
        )
    if not np.isfinite(rows).all():
        raise RequestError(
            Fault.REFUSED,
            f"Unable to load model '{info.name}': its {tower} encoder gives vectors that are not finite; are the "
            "weights intact, and do mean and std fit?",
        )
