"""What an open_clip model is built from: config, file of weights, tokenizer and preprocessing.

Source: docs/protocol.md, section 7.1. The first of three rules that applies says how the properties are read: they name
a checkpoint, a hub repository, or one of open_clip's pretrained tags. Only with a checkpoint do the properties for
preprocessing, tokenizer, jit and precision have an effect. The demo model counts as a tag.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import is_pretrained_cfg

from embedding.image_spec import ImageSpec
from embedding.models.files.failure import invalid, unloadable
from embedding.models.files.json_file import read_map
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import OPENCLIP_FILES, Auth, Weights, hf_token
from embedding.models.hf.staging import model_config, resolved_file
from embedding.models.openclip.bpe import BpeTokenizer
from embedding.models.openclip.config_checks import checked_openclip
from embedding.models.openclip.marqo_differences import pretrained
from embedding.models.openclip.tokenizer import OpenClipHfTokenizer
from embedding.models.properties import OpenClipProperties
from embedding.registry import DEMO_MODEL

HUB_PREFIX = "hf-hub:"
_DEMO_ARCHITECTURE = "demo-clip"
_CONFIG = "open_clip_config.json"
# Options that a repository may set for its tokenizer. Some others of transformers would read any file of this machine,
# and trust_remote_code would run any program.
_TOKENIZER_OPTIONS = frozenset({"clean", "strip_sep_token", "language", "additional_special_tokens", "reduction_mask"})
_TOKENIZER_FILES = ("*.json", "*.txt", "*.model")

_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PRESETS: dict[str, ImageSpec] = {
    "OpenCLIP": ImageSpec((224, 224), _OPENAI_MEAN, _OPENAI_STD, "bicubic", "shortest"),
    "OpenAI": ImageSpec((224, 224), _OPENAI_MEAN, _OPENAI_STD, "bicubic", "shortest"),
    "SigLIP": ImageSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash"),
    "CLIPA": ImageSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "squash"),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that open_clip needs to build a model. Files are on this machine's disk.

    Args:
        architecture: its name, for messages.
        config: open_clip's `model_cfg`.
        weights: the checkpoint.
        tokenizer: folder of a transformers tokenizer; None is open_clip's own tokenizer.
        tokenizer_options: further arguments of open_clip's tokenizer class.
        text_tower: the checked transformers config of the text tower; None is a tower of open_clip's own.
        preprocessing: open_clip's `preprocess_cfg`; open_clip adds its defaults.
        image: how pictures are preprocessed, if the properties say so; None leaves it to `preprocessing` and the model.
        precision: "fp32", "fp16" or "bf16" if the properties set it; None is the server's choice.
        jit: whether the module is scripted.
    """

    architecture: str
    config: dict[str, Any]
    weights: Path
    tokenizer: Path | None
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    text_tower: dict[str, Any] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    image: ImageSpec | None = None
    precision: str | None = None
    jit: bool = False

    @contextmanager
    def whole_config(self) -> Iterator[dict[str, Any]]:
        """The config. That of a transformers text tower is in a temporary folder, which exists within the context."""
        if self.text_tower is None:
            yield self.config
            return
        with tempfile.TemporaryDirectory(prefix="marqo-tower-") as folder:
            (Path(folder) / "config.json").write_text(json.dumps(self.text_tower))
            text = {**self.config["text_cfg"], "hf_model_name": folder, "hf_model_pretrained": False}
            yield {**self.config, "text_cfg": text}

    def make_tokenizer(self, settings: LoadOptions) -> Any:
        """open_clip's tokenizer: a callable from texts to int64 tokens, shape (n, context length)."""
        text = self.config["text_cfg"]
        length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
        if self.tokenizer is not None:
            return OpenClipHfTokenizer(self.tokenizer, length, settings, **self.tokenizer_options)
        options = _tokenizer_options(text)
        if not options:
            return _clip_tokenizer(length)
        return BpeTokenizer(open_clip.SimpleTokenizer(context_length=length, **options))


# Bounded, since a repository's config may give any length.
@lru_cache(4)
def _clip_tokenizer(context_length: int) -> BpeTokenizer:
    """Shared by models with the same context length: making one takes half a second and megabytes."""
    return BpeTokenizer(open_clip.SimpleTokenizer(context_length=context_length))


def find_recipe(properties: OpenClipProperties, auth: Auth | None, weights: Weights) -> Recipe:
    """Finds the recipe by the first rule that applies, and downloads what is missing.

    Raises:
        RequestError: REFUSED, with the reason.
    """
    if properties.has_checkpoint:
        return _from_checkpoint(properties, auth, weights)
    if properties.name == DEMO_MODEL:
        return _from_assets(weights)
    if properties.name.startswith(HUB_PREFIX):
        return _from_repository(properties.name, hf_token(auth), weights)
    return _from_tag(properties.name, hf_token(auth), weights)


def _from_checkpoint(properties: OpenClipProperties, auth: Auth | None, weights: Weights) -> Recipe:
    name, token = properties.name, hf_token(auth)
    if name.startswith(HUB_PREFIX):
        config = _repository_config(name, token, weights)["model_cfg"]
    else:
        name = name.replace("/", "-")  # the legacy spelling: ViT-B/32
        config = _architecture(name, properties.name)
    path = weights.checkpoint(properties, auth)
    if properties.tokenizer is not None:
        own = {"hf_tokenizer_name": properties.tokenizer}
        tokenizer, tokenizer_options = _tokenizer({"text_cfg": own}, properties.tokenizer, token, weights)
    else:
        tokenizer, tokenizer_options = _tokenizer(config, name, token, weights)
    preset = PRESETS[properties.preset]
    return Recipe(
        name,
        config,
        path,
        tokenizer,
        tokenizer_options,
        _text_tower(config, name, token, weights),
        image=ImageSpec(
            size=(properties.size, properties.size),
            mean=properties.mean or preset.mean,
            std=properties.std or preset.std,
            interpolation=preset.interpolation,
            resize_mode=preset.resize_mode,
        ),
        precision=properties.precision if "precision" in properties.model_fields_set else None,
        jit=properties.jit,
    )


def _from_assets(weights: Weights) -> Recipe:
    """The demo model. It behaves like a pretrained tag: the preprocessing is the model's own."""
    config = _architecture(_DEMO_ARCHITECTURE, _DEMO_ARCHITECTURE)
    path = weights.asset(f"{_DEMO_ARCHITECTURE}.safetensors", DEMO_MODEL)
    side = config["vision_cfg"]["image_size"]
    return Recipe(_DEMO_ARCHITECTURE, config, path, None, image=replace(PRESETS["OpenCLIP"], size=(side, side)))


def _from_repository(name: str, token: str | None, weights: Weights) -> Recipe:
    repository = name.removeprefix(HUB_PREFIX)
    both = _repository_config(name, token, weights)
    config = both["model_cfg"]
    path = weights.repository_file(repository, OPENCLIP_FILES, token, name)
    tokenizer, tokenizer_options = _tokenizer(config, name, token, weights)
    tower = _text_tower(config, name, token, weights)
    preprocessing = both.get("preprocess_cfg") or {}
    return Recipe(name, config, path, tokenizer, tokenizer_options, tower, preprocessing)


def _from_tag(name: str, token: str | None, weights: Weights) -> Recipe:
    architecture, tag = _pretrained_tag(name)
    weights.check_hub(name)
    config, entry = pretrained(architecture, tag)
    path = _tagged_weights(entry, token, weights, name)
    tokenizer, tokenizer_options = _tokenizer(config, name, token, weights)
    tower = _text_tower(config, name, token, weights)
    return Recipe(architecture, config, path, tokenizer, tokenizer_options, tower, entry)


def _architecture(name: str, given: str) -> dict[str, Any]:
    # Checked first, since `get_model_config` would also resolve `local-dir:` and `hf-hub:`.
    config: dict[str, Any] | None = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise invalid(f"name '{given}' is not an architecture that open_clip knows, such as ViT-B-32")
    return config


def _pretrained_tag(name: str) -> tuple[str, str]:
    parts = name.split("/")
    # The tag is checked against open_clip's table, since open_clip would also accept a path of this machine.
    if len(parts) == 3 and parts[0] == "open_clip" and is_pretrained_cfg(parts[1], parts[2]):
        _architecture(parts[1], parts[1])
        return parts[1], parts[2]
    raise invalid(
        f"name '{name}' is neither 'open_clip/ARCHITECTURE/PRETRAINED' with a pretrained tag that open_clip knows, nor "
        "'hf-hub:OWNER/REPOSITORY'; for your own checkpoint give `localpath`, `url` or `modelLocation`"
    )


def _tagged_weights(entry: dict[str, Any], token: str | None, weights: Weights, name: str) -> Path:
    """The file of a pretrained tag: from the hub if its entry names a repository, else from its URL."""
    if hub_location := entry.get("hf_hub"):
        repository, _, filename = hub_location.rpartition("/")
        stem = filename.rpartition(".")[0]
        names = (f"{stem}.safetensors", filename) if filename else OPENCLIP_FILES
        return weights.repository_file(repository, names, token, name)
    url = entry["url"]
    return weights.url(url, _hash_in(url), name)


def _hash_in(url: str) -> str:
    """The sha256, or the start of it, which the URLs of two hosts in open_clip's table contain."""
    if "openaipublic" in url:
        return str(url.split("/")[-2])
    if "mlfoundations" in url:
        return str(url.rsplit("/", 1)[-1].rsplit(".", 1)[0].split("-")[-1])
    return ""


def _repository_config(name: str, token: str | None, weights: Weights) -> dict[str, Any]:
    repository = name.removeprefix(HUB_PREFIX)
    path = weights.repository_file(repository, (_CONFIG,), token, name)
    return checked_openclip(read_map(resolved_file(path, path.parent)), f"{_CONFIG} of '{repository}'")


def _tokenizer(
    config: dict[str, Any], name: str, token: str | None, weights: Weights
) -> tuple[Path | None, dict[str, Any]]:
    """Folder and options of the architecture's tokenizer, as `open_clip.get_tokenizer` would choose it."""
    text = config["text_cfg"]
    repository = text.get("hf_tokenizer_name")
    if not repository:
        return None, {}
    folder = weights.repository(repository, token, _TOKENIZER_FILES, name)
    return folder, {"tokenizer_mode": text.get("tokenizer_mode"), **_tokenizer_options(text)}


def _tokenizer_options(text: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = text.get("tokenizer_kwargs") or {}
    if unknown := sorted(set(options) - _TOKENIZER_OPTIONS):
        raise unloadable(
            f"its config has tokenizer_kwargs that are not served: {', '.join(unknown)}; served are "
            + ", ".join(sorted(_TOKENIZER_OPTIONS))
        )
    return options


def _text_tower(config: dict[str, Any], name: str, token: str | None, weights: Weights) -> dict[str, Any] | None:
    """The config of a transformers text tower; None for a tower of open_clip's own. It is downloaded here because
    transformers would do so without the request's token, the limits and the cache."""
    repository = config["text_cfg"].get("hf_model_name")
    if not repository:
        return None
    return model_config(weights.repository(repository, token, ("config.json",), name))
