"""Models as exported ONNX graphs, run by ONNX Runtime in this process; newer Marqo versions use a Triton server.

The graphs come from `tritonTextEncoderProperties` and `tritonImageEncoderProperties`; tokenizer, preprocessing and
pooling are those of the model that the properties name. Source: docs/protocol.md, sections 7.2 and 7.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from open_clip.transform import PreprocessCfg

from embedding.errors import Fault, RequestError
from embedding.image_spec import ImageSpec
from embedding.models.files.failure import unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Auth, Located, Weights
from embedding.models.fingerprint import fingerprint
from embedding.models.hf.model import load_tokenizer
from embedding.models.hf.pooling import Pooling, pool
from embedding.models.hf.repository import hf_folder, link_roots, pooling_of
from embedding.models.model import Pixels, Rows
from embedding.models.onnx.graph import Array, OnnxGraph, data_files, file_bytes, load_graph
from embedding.models.openclip.recipe import find_recipe
from embedding.models.properties import HfProperties, OpenClipProperties, Tower, TritonEncoder
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.models.tokenizers.tokens import TextTokenizer, Tokens


class _ConfigFilesOnly(Weights):
    """Gets configs and tokenizers as usual, but no checkpoints: the graphs hold the weights."""

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
    """An open_clip model as two graphs, one that takes tokens and one that takes normalised pixels."""

    def __init__(self, info: ModelInfo, text: OnnxGraph, image: OnnxGraph, tokenizer: Any) -> None:
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
    def tokenize_executor(self) -> Executor | None:
        """See `Model.tokenize_executor`."""
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
    """A transformers text model as one graph, which computes the vectors of tokens; they are pooled here."""

    def __init__(self, info: ModelInfo, graph: OnnxGraph, tokenizer: TextTokenizer, pooling: Pooling) -> None:
        known = ("input_ids", "attention_mask", "token_type_ids")
        strange = [name for name in graph.input_names if name not in known]
        if strange:
            raise unloadable(f"the graph's input '{strange[0]}' is none of {', '.join(known)}")
        self.info = info
        self.tokenize = tokenizer
        self._graph = graph
        self._pooling: Pooling = pooling

    @property
    def tokenize_executor(self) -> Executor:
        """See `Model.tokenize_executor`."""
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
        """Never called: for such a model all items are embedded as texts, whatever their modality."""
        raise RequestError(Fault.INTERNAL, "a text model takes no pictures")


def wants_onnx(spec: ModelSpec, properties: OpenClipProperties | HfProperties, options: LoadOptions) -> bool:
    """Whether ONNX Runtime is to run this model: `backends` says so, or `backend` does and the request has graphs."""
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
    auth = spec.auth
    if isinstance(properties, HfProperties):
        return _load_text(spec, properties, device, options, weights)
    recipe = find_recipe(properties, auth, _ConfigFilesOnly(options))
    image = recipe.image or _image_spec(recipe.config, recipe.preprocessing)
    paths, graphs = {}, {}
    for tower in ("text", "image"):
        encoder = properties.triton_encoder(tower)
        paths[tower] = _graph_files(encoder, weights, auth)
        graphs[tower] = load_graph(paths[tower], encoder, device, weights)
    info = ModelInfo.of(spec, device, properties.dimensions, image, file_bytes([*paths["text"], *paths["image"]]))
    return OnnxClip(info, graphs["text"], graphs["image"], recipe.make_tokenizer(options))


def fetch_onnx(
    spec: ModelSpec, properties: OpenClipProperties | HfProperties, options: LoadOptions, weights: Weights
) -> None:
    """Downloads the files that `load_onnx` needs. Raises RequestError, as it does."""
    auth = spec.auth
    if isinstance(properties, HfProperties):
        hf_folder(properties, options, weights, auth, with_weights=False)
    else:
        find_recipe(properties, auth, _ConfigFilesOnly(options))
    estimate_onnx(spec, properties, weights)


def estimate_onnx(spec: ModelSpec, properties: OpenClipProperties | HfProperties, weights: Weights) -> int:
    """Bytes of the model's graphs and their data, which are downloaded if need be."""
    towers: tuple[Tower, ...] = ("text",) if isinstance(properties, HfProperties) else ("text", "image")
    files = [path for tower in towers for path in _graph_files(properties.triton_encoder(tower), weights, spec.auth)]
    return file_bytes(files)


def _load_text(
    spec: ModelSpec, properties: HfProperties, device: torch.device, options: LoadOptions, weights: Weights
) -> OnnxText:
    if properties.type == "hf_stella":
        raise unloadable("hf_stella models are not served by ONNX Runtime: their projection is no part of the graph")
    auth = spec.auth
    encoder = properties.triton_encoder("text")
    folder = hf_folder(properties, options, weights, auth, with_weights=False)
    files = _graph_files(encoder, weights, auth)
    graph = load_graph(files, encoder, device, weights)
    tokenizer = load_tokenizer(folder, properties, options)
    info = ModelInfo.of(spec, device, properties.dimensions, None, file_bytes(files))
    return OnnxText(info, graph, tokenizer, pooling_of(folder, properties, link_roots(properties, options)))


def _graph_files(encoder: TritonEncoder, weights: Weights, auth: Auth | None) -> list[Path]:
    """The graph's file, then its data files."""
    folder = weights.folder(encoder.sources, auth)
    return [folder / "model.onnx", *data_files(folder)]


def _image_spec(model: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> ImageSpec:
    """Preprocessing as in open_clip: its defaults, the settings of the weights, and the architecture's size."""
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
