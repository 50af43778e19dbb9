"""Exported encoders, run with ONNX Runtime: what the newer generation gives to Triton, without a Triton.

The graphs come from `tritonTextEncoderProperties` and `tritonImageEncoderProperties`; tokenizer, preprocessing and
pooling are those of the model that the properties name. Source: docs/protocol.md, sections 7.2 and 7.3.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from open_clip.transform import PreprocessCfg

from embedding.errors import Fault, RequestError
from embedding.image_spec import ImageSpec
from embedding.models.files.failure import described, is_out_of_memory, unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Auth, Located, Weights
from embedding.models.fingerprint import fingerprint
from embedding.models.hf.model import hf_folder, load_tokenizer, operators_folders, pooling_of, spec_auth
from embedding.models.hf.pooling import Pooling, pool
from embedding.models.model import Pixels, Rows
from embedding.models.onnx.trial import try_graph
from embedding.models.openclip.recipe import find_recipe
from embedding.models.properties import HfProperties, OpenClipProperties, Tower, TritonEncoder
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.models.tokenizers.tokens import TextTokenizer, Tokens

logger = logging.getLogger("ray.serve")

Array = npt.NDArray[Any]
_CHUNK_BYTES = 2**22
_NUMPY_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class Graph:
    """One exported tower.

    Args:
        path: its model.onnx; external data lie beside it.
        encoder: what the request says of it.
        device: CPU, or a GPU if this ONNX Runtime can use one.

    Raises:
        RequestError: REFUSED: ONNX Runtime is missing, the file is none that it can run, or inputs or outputs are not
            as the request says.
    """

    def __init__(self, path: Path, encoder: TritonEncoder, device: torch.device) -> None:
        # Held open, so that they can be read for the fingerprint after the disk's limit has made them go.
        self._files = {each.name: each.open("rb") for each in [path, *_data_files(path.parent)]}
        self._session = _session(path, device)
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        outputs = [each.name for each in self._session.get_outputs()]
        self._output = encoder.output[0].name
        if self._output not in outputs:
            raise unloadable(f"{path.name} has no output '{self._output}'; its outputs are {', '.join(outputs)}")
        unknown = sorted(self._inputs.keys() - {each.name for each in encoder.input})
        if unknown:
            raise unloadable(f"{path.name} wants an input '{unknown[0]}', which the request does not mention")
        for each in self._inputs.values():
            if each.type not in _NUMPY_TYPES:
                raise unloadable(f"input '{each.name}' of {path.name} is of type {each.type}, which is not served")

    def facts(self) -> dict[str, object]:
        """What decides its output, for a fingerprint: its files and what runs them."""
        files = {name: _digest(file) for name, file in self._files.items()}
        return {"files": files, "output": self._output, "providers": self._session.get_providers()}

    @property
    def input_names(self) -> list[str]:
        """In the order of the file."""
        return list(self._inputs)

    def __call__(self, values: Mapping[str, Array]) -> Array:
        """The output for one batch: arrays of the same first dimension by input name."""
        feed = {
            name: np.ascontiguousarray(values[name], _NUMPY_TYPES[each.type]) for name, each in self._inputs.items()
        }
        fixed = {each.shape[0] for each in self._inputs.values() if each.shape and isinstance(each.shape[0], int)}
        if not fixed:
            return self._run(feed)
        (size,) = fixed
        count = len(next(iter(feed.values())))
        parts = [self._padded(feed, start, size, count) for start in range(0, count, size)]
        return np.concatenate(parts)[:count]

    def _padded(self, feed: Mapping[str, Array], start: int, size: int, count: int) -> Array:
        """One batch of a graph that was exported for a fixed size, filled up with its last row."""
        rows = np.minimum(np.arange(start, start + size), count - 1)
        return self._run({name: value[rows] for name, value in feed.items()})

    def _run(self, feed: Mapping[str, Array]) -> Array:
        output: Array = self._session.run([self._output], dict(feed))[0]
        return output


class _Descriptions(Weights):
    """Configs and tokenizers as ever, but no checkpoints: the graphs hold the weights."""

    def checkpoint(self, properties: Located, auth: Auth | None = None) -> Path:
        return Path()

    def repository_file(self, repo_id: str, filenames: Sequence[str], token: str | None = None, name: str = "") -> Path:
        if any(filename.endswith(".json") for filename in filenames):
            return super().repository_file(repo_id, filenames, token, name)
        self.check_hub(name or repo_id)
        return Path()

    def url(self, url: str, sha256: str = "", name: str = "") -> Path:
        return Path()


class OnnxClip:
    """An open_clip model as two graphs: tokens in, and normalised pixels in."""

    def __init__(self, info: ModelInfo, text: Graph, image: Graph, tokenizer: Any) -> None:
        if len(text.input_names) != 1 or len(image.input_names) != 1:
            raise unloadable("each graph of an open_clip model must have one input")
        assert info.image is not None
        self.info = info
        self._text = text
        self._image = image
        self._tokenizer = tokenizer
        mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (info.image.mean, info.image.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    @property
    def tokenizing(self) -> Executor | None:
        """See `Model.tokenizing`."""
        return getattr(self._tokenizer, "thread", None)

    def tokenize(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """int64 tokens, shape (n, context length)."""
        tokens: npt.NDArray[np.int64] = self._tokenizer(list(texts)).numpy()
        return tokens

    def encode_texts(self, tokens: Sequence[npt.NDArray[np.int64]]) -> Rows:
        """See `Model.encode_texts`."""
        return _rows(self._text({self._text.input_names[0]: np.concatenate(tokens)}))

    def encode_images(self, pixels: Sequence[Pixels]) -> Rows:
        """See `Model.encode_images`."""
        images = np.concatenate(pixels) * self._scale + self._shift
        return _rows(self._image({self._image.input_names[0]: images}))

    @cached_property
    def fingerprint(self) -> str:
        """See `Model.fingerprint`."""
        tokens = self.tokenize(["The quick brown fox, 42 °C – fingerprint"]).tolist()
        image = asdict(self.info.image) if self.info.image is not None else None
        facts = {"text": self._text.facts(), "image": self._image.facts(), "preprocessing": image, "tokens": tokens}
        return fingerprint(torch.nn.Module(), facts)


class OnnxText:
    """A transformers text model as a graph from tokens to their vectors; pooled here."""

    def __init__(self, info: ModelInfo, graph: Graph, tokenizer: TextTokenizer, pooling: Pooling) -> None:
        known = ("input_ids", "attention_mask", "token_type_ids")
        strange = [name for name in graph.input_names if name not in known]
        if strange:
            raise unloadable(f"the graph's input '{strange[0]}' is none of {', '.join(known)}")
        self.info = info
        self.tokenize = tokenizer
        self._graph = graph
        self._pooling: Pooling = pooling

    @property
    def tokenizing(self) -> Executor:
        """See `Model.tokenizing`."""
        return self.tokenize.thread

    def encode_texts(self, tokens: Sequence[Tokens]) -> Rows:
        """See `Model.encode_texts`."""
        inputs = self.tokenize.merge(tokens)
        inputs.setdefault("token_type_ids", np.zeros_like(inputs["input_ids"]))
        output = self._graph(inputs)
        if output.ndim == 3:
            hidden, mask = torch.from_numpy(output.astype(np.float32)), torch.from_numpy(inputs["attention_mask"])
            output = pool(hidden, mask, self._pooling).numpy()
        return _rows(output)

    @cached_property
    def fingerprint(self) -> str:
        """See `Model.fingerprint`."""
        facts = {"text": self._graph.facts(), "pooling": self._pooling, **self.tokenize.facts()}
        return fingerprint(torch.nn.Module(), facts)

    def encode_images(self, pixels: Sequence[Any]) -> Rows:
        """Never called: contents of such a model are embedded as texts, whatever their modality."""
        raise RequestError(Fault.INTERNAL, "a text model takes no pictures")


def wants_onnx(spec: ModelSpec, properties: OpenClipProperties | HfProperties, options: LoadOptions) -> bool:
    """Whether the operator has this model run by ONNX Runtime: it is named, or has graphs and all such are meant."""
    for name in (spec.name, properties.name):
        if name is not None and name in options.backends:
            return options.backends[name] == "onnx"
    return options.backend == "onnx" and properties.triton_text is not None


def load_onnx(
    spec: ModelSpec,
    properties: OpenClipProperties | HfProperties,
    device: torch.device,
    options: LoadOptions,
    weights: Weights,
) -> OnnxClip | OnnxText:
    """Loads a model's graphs.

    Raises:
        RequestError: REFUSED, with the reason.
        Exception: whatever transformers or open_clip raise for files that they cannot use.
    """
    auth = spec_auth(spec)
    if isinstance(properties, HfProperties):
        return _load_text(spec, properties, device, options, weights)
    recipe = find_recipe(properties, auth, _Descriptions(options))
    image = recipe.image or _image_spec(recipe.config, recipe.preprocessing)
    paths, graphs = {}, {}
    for tower in ("text", "image"):
        encoder = properties.triton_encoder(tower)
        paths[tower] = _graph_files(encoder, weights, auth)
        graphs[tower] = _graph(paths[tower], encoder, device, weights)
    info = ModelInfo.of(spec, device, properties.dimensions, image, _nbytes([*paths["text"], *paths["image"]]))
    return OnnxClip(info, graphs["text"], graphs["image"], recipe.make_tokenizer(options))


def fetch_onnx(
    spec: ModelSpec, properties: OpenClipProperties | HfProperties, options: LoadOptions, weights: Weights
) -> None:
    """Brings the files of `load_onnx` to the disk. Raises RequestError, as it does."""
    auth = spec_auth(spec)
    if isinstance(properties, HfProperties):
        hf_folder(properties, options, weights, auth, with_weights=False)
    else:
        find_recipe(properties, auth, _Descriptions(options))
    estimate_onnx(spec, properties, weights)


def estimate_onnx(spec: ModelSpec, properties: OpenClipProperties | HfProperties, weights: Weights) -> int:
    """Bytes of the model's graphs and their data, which are downloaded if need be."""
    towers: tuple[Tower, ...] = ("text",) if isinstance(properties, HfProperties) else ("text", "image")
    files = [
        path for tower in towers for path in _graph_files(properties.triton_encoder(tower), weights, spec_auth(spec))
    ]
    return _nbytes(files)


def _load_text(
    spec: ModelSpec, properties: HfProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> OnnxText:
    if properties.type == "hf_stella":
        raise unloadable("hf_stella models are not served by ONNX Runtime: their projection is no part of the graph")
    auth = spec_auth(spec)
    encoder = properties.triton_encoder("text")
    folder = hf_folder(properties, options, weights, auth, with_weights=False)
    files = _graph_files(encoder, weights, auth)
    graph = _graph(files, encoder, device, weights)
    tokenizer = load_tokenizer(folder, properties, options)
    info = ModelInfo.of(spec, device, properties.dimensions, None, _nbytes(files))
    return OnnxText(info, graph, tokenizer, pooling_of(folder, properties, operators_folders(properties, options)))


def _digest(file: BinaryIO) -> str:
    digest = blake3()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest(16)


def _nbytes(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _graph_files(encoder: TritonEncoder, weights: Weights, auth: Auth | None) -> list[Path]:
    """Graph and data, the graph first."""
    folder = weights.folder(encoder.sources, auth)
    return [folder / "model.onnx", *_data_files(folder)]


def _data_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model.onnx.data*"))


def _graph(files: Sequence[Path], encoder: TritonEncoder, device: torch.device, weights: Weights) -> Graph:
    try:
        if importlib.util.find_spec("onnxruntime") is not None:  # else the session says that it is missing
            try_graph(files[0], _nbytes(files))
        return Graph(files[0], encoder, device)
    except RequestError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # ONNX Runtime has a type for each kind of bad file, under a module of its own that is not public.
        raise weights.unusable(files, f"ONNX Runtime cannot use {files[0].name}: {described(error)}") from error


def _session(path: Path, device: torch.device) -> Any:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError:
        raise unloadable("backend is onnx, but this server lacks the Python package `onnxruntime`") from None
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise spin on the CPUs that decode pictures.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in runtime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            logger.warning(f"{path.name} runs on the CPU: this ONNX Runtime has no CUDA (install onnxruntime-gpu)")
    return runtime.InferenceSession(str(path), settings, providers=providers)


def _image_spec(model: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> ImageSpec:
    """open_clip's own transform of an architecture and what its weights change in it."""
    config = PreprocessCfg(
        **{
            name: value
            for name, value in preprocessing.items()
            if name in PreprocessCfg.__dataclass_fields__ and value is not None
        }
    )
    size = model["vision_cfg"].get("image_size", 224)
    return ImageSpec(
        size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=config.interpolation,
        resize_mode=config.resize_mode,
        fill_color=config.fill_color,
    )


def _rows(output: Array) -> Rows:
    if output.ndim != 2:
        raise ValueError(f"the graph's output has {output.ndim} dimensions, not (batch, width)")
    return output.astype(np.float32, copy=False)
