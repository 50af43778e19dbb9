"""A model's fingerprint: two deployments that report the same one compute the same vectors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch
from blake3 import blake3

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "pillow", "transformers")


def fingerprint(module: torch.nn.Module, facts: Mapping[str, object]) -> str:
    """Hashes what determines a model's vectors, except this project's own code and the decoder of JPEGs.

    Reads every weight, which takes a second for a few gigabytes: call it in a thread, and once.

    Args:
        module: its parameters and buffers are hashed by name, type, shape and bytes, and its submodules by class and
            settings, since two models with the same weights may have different activations.
        facts: what else determines the vectors, as JSON values: preprocessing, precision, tokenizer, ….

    Returns:
        32 hex digits. The versions of the libraries that compute the vectors are hashed too.
    """
    digest = blake3(max_threads=blake3.AUTO)
    versions = {library: _version(library) for library in _LIBRARIES}
    digest.update(json.dumps([versions, dict(facts)], sort_keys=True).encode())
    digest.update(_ADDRESS.sub("", repr(module)).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest(16)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
