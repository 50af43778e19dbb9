"""Text models of Hugging Face transformers: how they are loaded, and the forward pass.

transformers is imported with the first such model, since that takes seconds. Source: docs/protocol.md, section 7.3.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from embedding.errors import Fault, RequestError
from embedding.models.cpu.capabilities import has_bf16
from embedding.models.cpu.packing import Packing, bf16_nbytes, is_equivalent, replace_linear_layers
from embedding.models.files.failure import unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Weights
from embedding.models.fingerprint import Described
from embedding.models.hf.attention import encode_in_batches
from embedding.models.hf.config_checks import check_sizes
from embedding.models.hf.pooling import Pooling, pool
from embedding.models.hf.repository import hf_folder, link_roots, pooling_of, weight_files
from embedding.models.hf.staging import (
    model_config,
    resolved_file,
    staged_model,
    staged_tokenizer,
    tensor_count,
)
from embedding.models.model import Rows
from embedding.models.properties import HfProperties
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.models.tokenizers.process import Loading, TokenizerProcess
from embedding.models.tokenizers.tokens import TextTokenizer, Tokens

PROBE_TEXTS = ("a photo of a cat", "word " * 20)

logger = logging.getLogger("ray.serve")

# Held while a model is built: transformers does that in context managers that patch torch for the whole process.
_building = threading.Lock()
# Allowed for tables that are computed and not in any file, such as those of positions.
_BUFFER_BYTES = 64 * 2**20


class HfModel:
    """A loaded transformers text model on its device.

    Args:
        info: its description.
        module: the encoder; its first output is (texts, tokens, width).
        tokenizer: its tokenizer.
        pooling: how the vectors of all tokens are combined into one.
        dense: applied to the pooled vectors (`hf_stella`); None for other models.
        dtype: in which linear layers compute on a CPU; None is the type of their weights.
    """

    def __init__(
        self,
        info: ModelInfo,
        module: torch.nn.Module,
        tokenizer: TextTokenizer,
        pooling: Pooling,
        dense: torch.nn.Linear | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.tokenize = tokenizer
        self._described = Described(torch.nn.ModuleList([module, *([] if dense is None else [dense])]))
        self._module = module
        self._pooling: Pooling = pooling
        self._dense = dense
        self._device = torch.device(info.device)
        self._heads = _heads(module)
        self._packing = self._packed(dtype)
        self.info = replace(info, nbytes=self._described.nbytes + self._packing.nbytes)

    def _packed(self, dtype: torch.dtype | None) -> Packing:
        """Replaces the linear layers on a CPU, if the vectors stay the same."""
        packing = Packing(dtype)
        if self._device.type != "cpu":
            return packing
        tokens = self.tokenize(PROBE_TEXTS)
        with torch.inference_mode():
            try:
                expected = self._vectors([tokens])
            except Exception:
                return packing  # the warm-up will report it
            replace_linear_layers(self._module, packing)
            if packing and is_equivalent("replaced layers", self._vectors, [tokens], expected, dtype):
                packing.keep()
            else:
                packing.undo()
        return packing

    @property
    def tokenize_executor(self) -> Executor:
        """See `Model.tokenize_executor`."""
        return self.tokenize.thread

    @torch.inference_mode()
    def encode_texts(self, tokens: Sequence[Tokens]) -> Rows:
        """See `Model.encode_texts`."""
        return encode_in_batches(tokens, self._heads, self._encode)

    def _encode(self, tokens: Sequence[Tokens]) -> Rows:
        rows: Rows = self._vectors(tokens).to(torch.float32).cpu().numpy()
        return rows

    def _vectors(self, tokens: Sequence[Tokens]) -> torch.Tensor:
        inputs = {name: torch.from_numpy(a).to(self._device) for name, a in self.tokenize.merge(tokens).items()}
        hidden = self._module(**inputs)[0]
        vectors = pool(hidden, inputs["attention_mask"], self._pooling)
        if self._dense is not None:
            vectors = self._dense(vectors)
        return vectors

    def encode_images(self, pixels: Sequence[Any]) -> Rows:
        """Never called: for such a model all items are embedded as texts, whatever their modality."""
        raise RequestError(Fault.INTERNAL, "a text model takes no pictures")

    @cached_property
    def fingerprint(self) -> str:
        """See `Model.fingerprint`."""
        facts = {"pooling": self._pooling, "device": self._device.type, **self.tokenize.facts()}
        if self._packing.dtype is not None:
            facts["precision"] = str(self._packing.dtype)
        return self._described.fingerprint(facts, self._packing.original)


def load_hf(
    spec: ModelSpec, properties: HfProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> HfModel:
    """Loads a model in single precision.

    Raises:
        RequestError: REFUSED: not allowed, not found, no weights.
        Exception: whatever transformers raises for files that it cannot use.
    """
    folder = hf_folder(properties, options, weights, spec.auth)
    roots = link_roots(properties, options)
    pooling = pooling_of(folder, properties, roots)
    files = weight_files(folder)
    for path in files:
        resolved_file(path, folder, roots)
        weights.check(path)
    with _source_folder(folder, files, properties, roots) as source:
        _checked_nbytes(source, files, properties)
        with _building:
            module = _read_module(source, properties)
    module.requires_grad_(False).eval().to(device)
    dense = _read_dense(folder, properties.dimensions, weights).to(device) if properties.type == "hf_stella" else None
    tokenizer = load_tokenizer(folder, properties, options, _positions(module), _vocabulary(module))
    info = ModelInfo.of(spec, device, properties.dimensions, None, 0)
    return HfModel(info, module, tokenizer, pooling, dense, _dtype(device, options))


def _dtype(device: torch.device, options: LoadOptions) -> torch.dtype | None:
    """In which type linear layers compute; None is that of the weights."""
    return torch.bfloat16 if device.type == "cpu" and options.cpu_precision == "bf16" and has_bf16() else None


def estimate_hf(
    spec: ModelSpec, properties: HfProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> int:
    """Bytes that the model's weights will take, computed from its files, which are downloaded if need be.

    Raises: as `load_hf`.
    """
    folder = hf_folder(properties, options, weights, spec.auth)
    files = weight_files(folder)
    with _source_folder(folder, files, properties, link_roots(properties, options)) as source:
        return _checked_nbytes(source, files, properties, _dtype(device, options))


@contextmanager
def _source_folder(
    folder: Path, files: Sequence[Path], properties: HfProperties, roots: Sequence[Path]
) -> Iterator[Path]:
    """The folder that transformers reads: a checked copy, or the repository itself if its own code may run anyway."""
    if properties.trust_remote_code:
        yield folder
        return
    config = model_config(folder, roots)
    own = [resolved_file(path, folder, roots) for path in files]
    counts = [tensor_count(path) for path in own]
    tensors = None if None in counts else sum(count for count in counts if count is not None)
    check_sizes(config, sum(path.stat().st_size for path in own), tensors)
    with staged_model(folder, config, files, roots) as staged:
        yield staged


def _checked_nbytes(
    source: Path, files: Sequence[Path], properties: HfProperties, dtype: torch.dtype | None = None
) -> int:
    """Bytes of the model, built on torch's device `meta`, which allocates no memory.

    Raises:
        RequestError: REFUSED: it has more weights than its files have bytes.
    """
    file_bytes = sum(path.stat().st_size for path in files)
    try:
        with _building, torch.device("meta"):
            module = transformers().AutoModel.from_config(
                _config(source, properties), trust_remote_code=properties.trust_remote_code
            )
    except Exception:
        if not properties.trust_remote_code:
            raise
        # Code of a repository that does not support the device `meta`: single precision takes at least the file's size.
        return file_bytes
    # The pooler may be missing in the files, and is then initialised at random.
    weights = sum(tensor.numel() for name, tensor in module.named_parameters() if "pooler." not in name)
    buffers = sum(int(tensor.nbytes) for tensor in module.buffers())
    if weights > file_bytes or buffers > file_bytes + _BUFFER_BYTES:
        raise unloadable(f"config.json describes {weights} weights, but the files of weights have {file_bytes} bytes")
    whole: int = buffers + sum(int(tensor.nbytes) for tensor in module.parameters())
    return whole if dtype is None else bf16_nbytes(module)


def transformers() -> Any:
    """The library, imported when it is first used."""
    library: Any = importlib.import_module("transformers")
    library.utils.logging.disable_progress_bar()
    return library


def _config(folder: Path, properties: HfProperties) -> Any:
    config = transformers().AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=properties.trust_remote_code
    )
    if properties.type == "hf_stella":
        # Both need the package xformers, and change no vector.
        config.use_memory_efficient_attention = False
        config.unpad_inputs = False
    return config


def _read_module(folder: Path, properties: HfProperties) -> torch.nn.Module:
    module, report = transformers().AutoModel.from_pretrained(
        folder,
        config=_config(folder, properties),
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=properties.trust_remote_code,
        output_loading_info=True,
    )
    # The pooler is never used. Anything else that is missing would be initialised at random.
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise ValueError(f"the weights lack {len(missing)} tensors of the architecture, {missing[0]} among them")
    loaded: torch.nn.Module = module
    return loaded


def _read_dense(folder: Path, dimensions: int, weights: Weights) -> torch.nn.Linear:
    """The projection of a stella model to one of several widths. Source: the model's card."""
    subfolder = folder / f"2_Dense_{dimensions}"
    for path in weight_files(subfolder):
        weights.check(path)
    if (subfolder / "model.safetensors").is_file():
        state = load_file(subfolder / "model.safetensors")
    elif (subfolder / "pytorch_model.bin").is_file():
        state = torch.load(subfolder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        raise unloadable(f"dimensions is {dimensions}, but the repository has no {subfolder.name}")
    state = {name.removeprefix("linear."): tensor.to(torch.float32) for name, tensor in state.items()}
    dense = torch.nn.Linear(state["weight"].shape[1], state["weight"].shape[0], bias="bias" in state)
    dense.load_state_dict(state)
    return dense.requires_grad_(False)


def load_tokenizer(
    folder: Path, properties: HfProperties, options: LoadOptions, positions: int | None = None, vocabulary: int = 0
) -> TextTokenizer:
    """The tokenizer of a folder. Texts are cut off at the properties' `tokens`, or where the model's positions end."""
    limit = min(properties.tokens, options.max_tokens, positions or properties.tokens)
    if limit < properties.tokens:
        logger.warning(
            f"tokens is {properties.tokens}, but the model in {folder.name} takes at most {positions or 'any'}, and "
            f"max_tokens is {options.max_tokens}: cut off at {limit}"
        )
    trusted = properties.trust_remote_code
    roots = link_roots(properties, options)

    def stage() -> AbstractContextManager[Path]:
        return nullcontext(folder) if trusted else staged_tokenizer(folder, roots)

    return TextTokenizer(TokenizerProcess(Loading(stage, limit, trusted), options), limit, vocabulary)


def _positions(module: torch.nn.Module) -> int | None:
    """How many tokens of a text the model can encode; None if nothing limits it."""
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            # Models like RoBERTa number positions from the one after the padding index.
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    # Rotary positions have no table, but beyond the length that the model was trained for its vectors are useless.
    trained = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return trained if isinstance(trained, int) and trained > 0 else None


def _heads(module: Any) -> int:
    heads = getattr(getattr(module, "config", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) and heads > 0 else 1


def _vocabulary(module: Any) -> int:
    """Rows of the embedding table; 0 if unknown."""
    try:
        return int(module.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return 0
