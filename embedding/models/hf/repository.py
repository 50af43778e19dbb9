"""Finds the folder with the files of a transformers text model, and reads which pooling it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedding.models.files.failure import invalid, unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.weights import Auth, Weights, hf_token
from embedding.models.hf.pooling import Pooling, pooling_mode
from embedding.models.hf.staging import repository_json
from embedding.models.properties import HfProperties

_CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.tiktoken")


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
    patterns = [*_CONFIG_PATTERNS, *(["*.py"] if properties.trust_remote_code else [])]
    if not with_weights:
        return weights.repository(repository, token, patterns)
    if properties.type == "hf_stella":
        patterns.append(f"2_Dense_{properties.dimensions}/*")
    folder = weights.repository(repository, token, [*patterns, "model*.safetensors"])
    if not weight_files(folder):
        folder = weights.repository(repository, token, [*patterns, "pytorch_model*.bin"])
    if not weight_files(folder):
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
    """The folder with config.json: the given one, or the first of its subfolders that has one."""
    for candidate in (folder, *(sorted(path for path in folder.iterdir() if path.is_dir()))):
        if (candidate / "config.json").is_file():
            return candidate
    raise unloadable("there is no config.json, so these are not the files of a transformers model")


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder: safetensors, else pickles of torch."""
    return [*folder.glob("model*.safetensors")] or [*folder.glob("pytorch_model*.bin")]


def link_roots(properties: HfProperties, options: LoadOptions) -> tuple[Path, ...]:
    """Folders outside the model's own into which its links may lead: for a local model, all those of the operator."""
    return options.path_roots if properties.localpath is not None else ()


def pooling_of(folder: Path, properties: HfProperties, roots: Sequence[Path] = ()) -> Pooling:
    """The properties' pooling, else what the repository's `1_Pooling/config.json` says, else mean.

    Raises:
        RequestError: REFUSED: the repository says one that is not served.
    """
    if properties.pooling is not None:
        return properties.pooling
    config = repository_json(folder, "1_Pooling/config.json", roots)
    return "mean" if config is None else pooling_mode(config)
