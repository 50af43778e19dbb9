"""A model's fingerprint: two deployments that report the same one compute the same vectors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import torch
from blake3 import blake3

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "pillow", "transformers")


class Described:
    """What a module was when it was loaded, for its fingerprint: its layers may be replaced afterwards.

    Args:
        module: its parameters and buffers are hashed by name, type, shape and bytes, and its submodules by class and
            settings, since two models with the same weights may have different activations.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._text = _ADDRESS.sub("", repr(module))
        self._tensors = [
            (f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ", tensor)
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters and buffers that still hold their values."""
        return sum(tensor.nbytes for _, tensor in self._tensors)

    def fingerprint(
        self,
        facts: Mapping[str, object],
        original: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> str:
        """Hashes what determines a model's vectors, except this project's own code and the decoder of JPEGs.

        Reads every weight, which takes a second for a few gigabytes: call it in a thread, and once.

        Args:
            facts: what else determines the vectors, as JSON values: preprocessing, precision, tokenizer, ….
            original: gives the values that a tensor had when the module was loaded.

        Returns:
            32 hex digits. The versions of the libraries that compute the vectors are hashed too.
        """
        digest = blake3(max_threads=blake3.AUTO)
        versions = {library: _version(library) for library in _LIBRARIES}
        digest.update(json.dumps([versions, dict(facts)], sort_keys=True).encode())
        digest.update(self._text.encode())
        for described, tensor in self._tensors:
            digest.update(described.encode())
            raw = original(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
        return digest.hexdigest(16)


def fingerprint(module: torch.nn.Module, facts: Mapping[str, object]) -> str:
    """The fingerprint of a module as it is: see `Described.fingerprint`."""
    return Described(module).fingerprint(facts)


def with_facts(fingerprint: str, facts: Mapping[str, object]) -> str:
    """The fingerprint of a model whose vectors depend on more than the model itself.

    Args:
        fingerprint: the model's.
        facts: settings of the server that decide its vectors, as JSON values, without those that have their default.

    Returns:
        32 hex digits; without facts the model's own fingerprint.
    """
    if not facts:
        return fingerprint
    return blake3(json.dumps([fingerprint, dict(facts)], sort_keys=True).encode()).hexdigest(16)


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "absent"
