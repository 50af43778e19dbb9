"""Text models of Hugging Face transformers: tokens, the forward pass, and one vector from the vectors of all tokens.

transformers is optional, and imported with the first such model. Source: docs/protocol.md, section 7.3.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from embedding.errors import Fault, RequestError
from embedding.models.files.failure import invalid, unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Auth, Weights, hf_token
from embedding.models.fingerprint import fingerprint
from embedding.models.hf.attention import attended_apart
from embedding.models.hf.description import check_sizes
from embedding.models.hf.pooling import Pooling, pool, pooling_mode
from embedding.models.hf.staging import (
    described_by,
    model_config,
    own_file,
    staged_model,
    staged_tokenizer,
    tensor_count,
)
from embedding.models.model import Rows
from embedding.models.properties import HfProperties
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.models.tokenizers.process import Loading, TokenizerProcess
from embedding.models.tokenizers.tokens import TextTokenizer, Tokens

logger = logging.getLogger("ray.serve")

_DESCRIPTION = ("*.json", "*.txt", "*.model", "*.tiktoken")
# transformers builds models inside context managers that patch torch for the whole process.
_building = threading.Lock()
# Tables that no file holds, such as those of positions.
_BUFFER_BYTES = 64 * 2**20


class HfModel:
    """A loaded transformers text model on its device.

    Args:
        info: what it says of itself.
        module: the encoder; its first output is (texts, tokens, width).
        tokenizer: its tokenizer.
        pooling: how the vectors of tokens become one.
        dense: applied to the pooled vectors (`hf_stella`); None for other models.
    """

    def __init__(
        self,
        info: ModelInfo,
        module: torch.nn.Module,
        tokenizer: TextTokenizer,
        pooling: Pooling,
        dense: torch.nn.Linear | None = None,
    ) -> None:
        self.info = info
        self.tokenize = tokenizer
        self._module = module
        self._pooling: Pooling = pooling
        self._dense = dense
        self._device = torch.device(info.device)
        self._heads = _heads(module)

    @property
    def tokenizing(self) -> Executor:
        """See `Model.tokenizing`."""
        return self.tokenize.thread

    @torch.inference_mode()
    def encode_texts(self, tokens: Sequence[Tokens]) -> Rows:
        """See `Model.encode_texts`."""
        return attended_apart(tokens, self._heads, self._encode)

    def _encode(self, tokens: Sequence[Tokens]) -> Rows:
        inputs = {name: torch.from_numpy(a).to(self._device) for name, a in self.tokenize.merge(tokens).items()}
        hidden = self._module(**inputs)[0]
        vectors = pool(hidden, inputs["attention_mask"], self._pooling)
        if self._dense is not None:
            vectors = self._dense(vectors)
        rows: Rows = vectors.to(torch.float32).cpu().numpy()
        return rows

    def encode_images(self, pixels: Sequence[Any]) -> Rows:
        """Never called: contents of such a model are embedded as texts, whatever their modality."""
        raise RequestError(Fault.INTERNAL, "a text model takes no pictures")

    @cached_property
    def fingerprint(self) -> str:
        """See `Model.fingerprint`."""
        weights = torch.nn.ModuleList([self._module, *([] if self._dense is None else [self._dense])])
        return fingerprint(weights, {"pooling": self._pooling, "device": self._device.type, **self.tokenize.facts()})


def load_hf(
    spec: ModelSpec, properties: HfProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> HfModel:
    """Loads a model in single precision.

    Raises:
        RequestError: REFUSED: not allowed, not found, no weights.
        Exception: whatever transformers raises for files that it cannot use.
    """
    folder = hf_folder(properties, options, weights, spec_auth(spec))
    roots = operators_folders(properties, options)
    pooling = pooling_of(folder, properties, roots)
    files = _weight_files(folder)
    for path in files:
        own_file(path, folder, roots)
        weights.check(path)
    with _source(folder, files, properties, roots) as source:
        _judged(source, files, properties)
        with _building:
            module = _read_module(source, properties)
    module.requires_grad_(False).eval().to(device)
    dense = _read_dense(folder, properties.dimensions, weights).to(device) if properties.type == "hf_stella" else None
    tokenizer = load_tokenizer(folder, properties, options, _positions(module), _vocabulary(module))
    tensors = [*module.parameters(), *module.buffers(), *(dense.parameters() if dense is not None else ())]
    info = ModelInfo.of(spec, device, properties.dimensions, None, sum(tensor.nbytes for tensor in tensors))
    return HfModel(info, module, tokenizer, pooling, dense)


def estimate_hf(spec: ModelSpec, properties: HfProperties, options: LoadOptions, weights: Weights) -> int:
    """Bytes that the model's weights will take, told from its files, which are downloaded if need be.

    Raises: as `load_hf`.
    """
    folder = hf_folder(properties, options, weights, spec_auth(spec))
    files = _weight_files(folder)
    with _source(folder, files, properties, operators_folders(properties, options)) as source:
        return _judged(source, files, properties)


def operators_folders(properties: HfProperties, options: LoadOptions) -> tuple[Path, ...]:
    """Where links of a local model may lead: they are the operator's own."""
    return options.path_roots if properties.localpath is not None else ()


@contextmanager
def _source(folder: Path, files: Sequence[Path], properties: HfProperties, roots: Sequence[Path]) -> Iterator[Path]:
    """The folder that transformers reads: a checked copy, or the repository itself if its own code runs anyway."""
    if properties.trust_remote_code:
        yield folder
        return
    config = model_config(folder, roots)
    own = [own_file(path, folder, roots) for path in files]
    counts = [tensor_count(path) for path in own]
    tensors = None if None in counts else sum(count for count in counts if count is not None)
    check_sizes(config, sum(path.stat().st_size for path in own), tensors)
    with staged_model(folder, config, files, roots) as staged:
        yield staged


def _judged(source: Path, files: Sequence[Path], properties: HfProperties) -> int:
    """Bytes of the model, which is built without memory.

    Raises:
        RequestError: REFUSED: it has more weights than its files have bytes.
    """
    there = sum(path.stat().st_size for path in files)
    try:
        with _building, torch.device("meta"):
            module = transformers().AutoModel.from_config(
                _config(source, properties), trust_remote_code=properties.trust_remote_code
            )
    except Exception:
        if not properties.trust_remote_code:
            raise
        # Code of a repository that cannot be built without memory: single precision is at least what the file holds.
        return there
    # The pooler may be missing, and is made up then: of the width's square.
    weights = sum(tensor.numel() for name, tensor in module.named_parameters() if "pooler." not in name)
    buffers = sum(int(tensor.nbytes) for tensor in module.buffers())
    if weights > there or buffers > there + _BUFFER_BYTES:
        raise unloadable(f"config.json describes {weights} weights, but the files of weights have {there} bytes")
    return buffers + sum(int(tensor.nbytes) for tensor in module.parameters())


def transformers() -> Any:
    """The library, imported now.

    Raises:
        RequestError: REFUSED, if it is not installed.
    """
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError:
        raise unloadable(
            "models of type 'hf' need the Python package `transformers`, which this server lacks"
        ) from None
    library.utils.logging.disable_progress_bar()
    return library


def spec_auth(spec: ModelSpec) -> Auth | None:
    """The request's credentials, revealed; None if it has none."""
    auth: Auth | None = None if spec.auth_json is None else json.loads(spec.auth_json)
    return auth


def hf_folder(
    properties: HfProperties, options: LoadOptions, weights: Weights, auth: Auth | None, with_weights: bool = True
) -> Path:
    """The folder with the model's files: config.json, tokenizer, and weights if they are wanted.

    Raises:
        RequestError: REFUSED, with the reason.
    """
    if properties.trust_remote_code and not options.trust_remote_code:
        raise unloadable(
            "trustRemoteCode is true, but this server runs no code of models; its operator may set trust_remote_code"
        )
    repository = properties.name or _repository(properties, auth)
    if repository is None:
        return _model_root(weights.archive(properties, auth))
    token = hf_token(auth)
    patterns = [*_DESCRIPTION, *(["*.py"] if properties.trust_remote_code else [])]
    if not with_weights:
        return weights.repository(repository, token, patterns)
    if properties.type == "hf_stella":
        patterns.append(f"2_Dense_{properties.dimensions}/*")
    folder = weights.repository(repository, token, [*patterns, "model*.safetensors"])
    if not _weight_files(folder):
        folder = weights.repository(repository, token, [*patterns, "pytorch_model*.bin"])
    if not _weight_files(folder):
        raise unloadable(f"repository '{repository}' has no weights that transformers could load")
    return folder


def _repository(properties: HfProperties, auth: Auth | None) -> str | None:
    """The repository that `modelLocation` names as a whole; None if the model is in one file or folder."""
    location = properties.model_location
    if location is None or location.hf is None or location.hf.filename is not None:
        return None
    if location.auth_required and hf_token(auth) is None:
        raise invalid("modelLocation says authRequired, and the request has no modelAuth for hf")
    return location.hf.repo_id


def _model_root(folder: Path) -> Path:
    """Where config.json is: the folder itself, or the only folder in it."""
    for candidate in (folder, *(sorted(path for path in folder.iterdir() if path.is_dir()))):
        if (candidate / "config.json").is_file():
            return candidate
    raise unloadable("there is no config.json, so these are not the files of a transformers model")


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]


def _config(folder: Path, properties: HfProperties) -> Any:
    config = transformers().AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=properties.trust_remote_code
    )
    if properties.type == "hf_stella":
        # Both want xformers, and change no vector.
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
    # The pooler is never used. Anything else that is missing would be made up of random numbers.
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise ValueError(f"the weights lack {len(missing)} tensors of the architecture, {missing[0]} among them")
    loaded: torch.nn.Module = module
    return loaded


def _read_dense(folder: Path, dimensions: int, weights: Weights) -> torch.nn.Linear:
    """stella's own projection to one of several widths. Source: the model's card."""
    place = folder / f"2_Dense_{dimensions}"
    for path in _weight_files(place):
        weights.check(path)
    if (place / "model.safetensors").is_file():
        state = load_file(place / "model.safetensors")
    elif (place / "pytorch_model.bin").is_file():
        state = torch.load(place / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        raise unloadable(f"dimensions is {dimensions}, but the repository has no {place.name}")
    state = {name.removeprefix("linear."): tensor.to(torch.float32) for name, tensor in state.items()}
    dense = torch.nn.Linear(state["weight"].shape[1], state["weight"].shape[0], bias="bias" in state)
    dense.load_state_dict(state)
    return dense.requires_grad_(False)


def load_tokenizer(
    folder: Path, properties: HfProperties, options: LoadOptions, positions: int | None = None, vocabulary: int = 0
) -> TextTokenizer:
    """The tokenizer of a folder, cut off at the properties' `tokens`, or where the model's positions end."""
    limit = min(properties.tokens, options.max_tokens, positions or properties.tokens)
    if limit < properties.tokens:
        logger.warning(
            f"tokens is {properties.tokens}, but the model in {folder.name} takes at most {positions or 'any'}, and "
            f"max_tokens is {options.max_tokens}: cut off at {limit}"
        )
    trusted = properties.trust_remote_code
    roots = operators_folders(properties, options)

    def stage() -> AbstractContextManager[Path]:
        return nullcontext(folder) if trusted else staged_tokenizer(folder, roots)

    return TextTokenizer(TokenizerProcess(Loading(stage, limit, trusted), options), limit, vocabulary)


def _positions(module: torch.nn.Module) -> int | None:
    """How many tokens the model can take; None if nothing limits it."""
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding):
            # RoBERTa's kin count from behind the padding index.
            return part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
    # Rotary ones have no table: beyond what it was trained for, such a model gives anything.
    trained = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return trained if isinstance(trained, int) and trained > 0 else None


def _heads(module: Any) -> int:
    heads = getattr(getattr(module, "config", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) and heads > 0 else 1


def _vocabulary(module: Any) -> int:
    """Rows of the embedding table; 0 if the model does not tell."""
    try:
        return int(module.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):
        return 0


def pooling_of(folder: Path, properties: HfProperties, roots: Sequence[Path] = ()) -> Pooling:
    """The properties' pooling, else what the repository's `1_Pooling/config.json` says, else mean.

    Raises:
        RequestError: REFUSED: the repository says one that is not served.
    """
    if properties.pooling is not None:
        return properties.pooling
    config = described_by(folder, "1_Pooling/config.json", roots)
    return "mean" if config is None else pooling_mode(config)
