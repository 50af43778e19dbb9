"""The `models` settings of an encoder: from where models may be loaded, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from embedding.fetch.guard import Guard
from embedding.models.random import HashName

Source = Literal["registry", "hub", "url", "s3", "path"]
Backend = Literal["torch", "onnx"]
Precision = Literal["fp32", "fp16", "bf16"]
CpuPrecision = Literal["fp32", "bf16"]

CACHE_VARIABLE = "MARQO_MODEL_CACHE_PATH"
DUAL_STACK_VARIABLE = "MARQO_MODEL_DOWNLOAD_S3_USE_DUAL_STACK"
ALLOWED_NETWORKS = "encoder.models.allowed_networks"
"""The name of that setting in messages."""


def _default_cache_dir() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/marqo-ray/models")


def _default_dual_stack() -> bool:
    return os.environ.get(DUAL_STACK_VARIABLE, "").strip().lower() in ("true", "1")


class LoadOptions(BaseModel):
    """Settings for loading models. An unknown key is an error.

    Args:
        model_sources: where weights may come from. "registry": models of the table that comes with this server,
            wherever their files are. "hub": any Hugging Face repository and any pretrained tag of open_clip. "url": the
            `url` of a request. "s3": an S3 object. "path": a file of this machine, under `path_roots`.
        path_roots: the folders for "path". Links are resolved before a path is compared with them.
        cache_dir: where downloads are kept; shared by the replicas of a node. Default: the environment variable
            MARQO_MODEL_CACHE_PATH, else a folder in the user's home. Files of the hub go to its subfolder `hub`, or to
            the Hugging Face cache if HF_HOME or HF_HUB_CACHE is set.
        max_cache_bytes: limit for all downloads in `cache_dir` together; the least recently used are deleted first. 0
            is no limit. Files that a process of this node is downloading or loading are kept even beyond the limit. A
            Hugging Face cache elsewhere is not counted.
        allowed_networks: comma-separated networks that "url" downloads may connect to although they are not public.
        share_private_models: whether a model that was loaded with `modelAuth` also serves requests without it, since
            Marqo sends credentials only in order to have it loaded. If not, it serves only requests with the same
            credentials, and before each load the hub or S3 is asked whether these (or none) give access to the files.
        trust_remote_code: whether a repository's own Python code may run. It has all rights of this process.
        random_hash: seeds the `random` models; "md5" for indexes made before Marqo 2.25.
        backend: which library runs models that both can run.
        backends: the same for single models, by name.
        max_tokens: limit for one text, whatever a request's `tokens` says: the memory of attention grows with the
            square of the number of tokens.
        tokenizer_bytes: memory limit of the subprocess of a transformers tokenizer.
        tokenizer_load_s: seconds of CPU time to load and test such a tokenizer.
        cuda_precision: of models on a GPU whose properties do not ask for `fp32`.
        cpu_precision: of models on a CPU whose properties do not ask for another one. With `bf16` linear layers, which
            take most of the time, compute in bfloat16, if the processor can; else it is `fp32`.
        max_checkpoint_bytes: limit for one file; 0 is no limit.
        connect_timeout_s: seconds to connect to a server, and for the hub's first answer.
        read_timeout_s: seconds without a single byte after which a download fails.
        download_timeout_s: seconds for one whole file, not counting the wait for another process that downloads it.
        min_download_bytes_per_s: a download that is slower fails; 0 is no limit.
        download_window_s: seconds over which that rate is averaged. Before the first byte a server has
            `read_timeout_s` more.
        max_redirects: that one download may follow.
        ca_file: PEM file of the trusted certificate authorities for "url"; "" is certifi's.
        s3_dual_stack: whether S3 is also reached by IPv6. Default: MARQO_MODEL_DOWNLOAD_S3_USE_DUAL_STACK.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)

    model_sources: tuple[Source, ...] = ("registry", "hub")
    path_roots: tuple[Path, ...] = ()
    cache_dir: Path = Field(default_factory=_default_cache_dir)
    max_cache_bytes: NonNegativeInt = 0
    allowed_networks: str = ""
    share_private_models: bool = True
    trust_remote_code: bool = False
    random_hash: HashName = "blake3"
    backend: Backend = "torch"
    backends: Mapping[str, Backend] = Field(default_factory=dict)
    max_tokens: PositiveInt = 8192
    tokenizer_bytes: PositiveInt = 2**30
    tokenizer_load_s: PositiveFloat = 30.0
    cuda_precision: Precision = "fp16"
    cpu_precision: CpuPrecision = "fp32"
    max_checkpoint_bytes: NonNegativeInt = 64 * 2**30
    connect_timeout_s: PositiveFloat = 10.0
    read_timeout_s: PositiveFloat = 60.0
    download_timeout_s: PositiveFloat = 3600.0
    min_download_bytes_per_s: NonNegativeInt = 16 * 1024
    download_window_s: PositiveFloat = 30.0
    max_redirects: PositiveInt = 10
    ca_file: str = ""
    s3_dual_stack: bool = Field(default_factory=_default_dual_stack)

    @model_validator(mode="after")
    def _makes_sense(self) -> LoadOptions:
        Guard.parse(self.allowed_networks, ALLOWED_NETWORKS)
        if ("path" in self.model_sources) != bool(self.path_roots):
            raise ValueError("path_roots must be given if, and only if, model_sources contains 'path'")
        if not all(root.is_absolute() for root in self.path_roots):
            raise ValueError("path_roots must be absolute")
        return self
