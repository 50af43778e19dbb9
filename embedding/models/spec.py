"""How a request describes a model, and how a loaded model is described. Plain data: this imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from blake3 import blake3

from embedding.errors import Fault, RequestError
from embedding.image_spec import ImageSpec
from embedding.protocol import ModelConfig
from embedding.registry import canonical_json, lookup, model_key, properties_digest
from embedding.shown import shown

MAX_DIMENSIONS = 65_536
"""Largest length of a vector."""
MAX_SPEC_CHARS = 100_000
"""Limit for all that a request says of its model, since each call to an encoder carries it."""

_LISTED_CHARS = 4000
_IDENTIFYING = ("name", "type", "dimensions")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model that a request names, with all its properties. Hashable, so that it can be the key of a cache.

    Args:
        name: the label from the request.
        properties_json: the model's properties as canonical JSON; they alone choose the weights.
        device: that the request asks for, or None for the best that the encoder has.
        auth_json: credentials for the download, as JSON. Not shown in logs, and not part of the identity.
        owner: a keyed hash of the credentials, if models loaded with credentials serve only requests with the same
            ones; else "". Only encoders set it.
    """

    name: str
    properties_json: str
    device: str | None = None
    auth_json: str | None = field(default=None, repr=False, compare=False)
    owner: str = field(default="", repr=False)

    @classmethod
    def from_config(cls, config: ModelConfig, device: str | None = None) -> ModelSpec:
        """The spec of a request's model; a name without properties is looked up in the registry.

        Raises:
            RequestError: REFUSED, for an unknown name without properties, properties that are not JSON, or more than
                MAX_SPEC_CHARS in all.
        """
        properties = config.model_properties
        if properties is None:
            properties = lookup(config.model_name)
        if properties is None:
            raise RequestError(
                Fault.REFUSED,
                f"Invalid model properties: '{shown(config.model_name)}' is not in the registry: give modelProperties",
            )
        auth = config.model_auth
        spec = cls(
            name=config.model_name,
            properties_json=_as_json(properties),
            device=device,
            auth_json=None if auth is None else _json_with_secrets(auth.model_dump(exclude_none=True)),
        )
        size = spec.characters
        if size > MAX_SPEC_CHARS:
            raise RequestError(
                Fault.REFUSED,
                f"Invalid model properties: the model's name, properties, device and credentials have {size} "
                f"characters together, at most {MAX_SPEC_CHARS} are taken",
            )
        return spec

    @property
    def characters(self) -> int:
        """Total length of its strings, which each call to an encoder carries."""
        return sum(len(part or "") for part in (self.name, self.properties_json, self.device, self.auth_json))

    @property
    def dimensions(self) -> int:
        """Length of its vectors as the properties say, else MAX_DIMENSIONS. A model with other vectors is refused."""
        given = self.properties.get("dimensions")
        return min(given, MAX_DIMENSIONS) if type(given) is int and given > 0 else MAX_DIMENSIONS

    @property
    def properties(self) -> dict[str, object]:
        """The model's properties, as the request gave them."""
        properties: dict[str, object] = json.loads(self.properties_json)
        return properties

    @property
    def auth(self) -> dict[str, Any] | None:
        """The request's `modelAuth` with its secrets, {"hf": …} or {"s3": …}; None if it has none."""
        auth: dict[str, Any] | None = None if self.auth_json is None else json.loads(self.auth_json)
        return auth

    @property
    def key(self) -> str:
        """`name||hash`, the model's name in `/models` of newer Marqo versions (docs/protocol.md, section 8.1)."""
        return model_key(self.name, self.properties)

    @property
    def identity(self) -> bytes:
        """A short digest that is equal for equal specs, as a key for facts about many models."""
        return blake3(repr((self.name, self.properties_json, self.device, self.owner)).encode()).digest()

    @property
    def digest(self) -> str:
        """Hash of all properties: two specs with the same digest have the same weights."""
        return properties_digest(self.properties)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the ingress needs to know of a loaded model.

    Args:
        name: the label under which it was loaded.
        key: `name||hash`.
        device: that it is on, for instance "cpu" or "cuda:0".
        dimensions: length of its vectors.
        image: how pictures are preprocessed for it; None if it embeds texts only.
        properties_json: the model's properties as canonical JSON.
        nbytes: bytes of its weights.
    """

    name: str
    key: str
    device: str
    dimensions: int
    image: ImageSpec | None
    properties_json: str
    nbytes: int

    @classmethod
    def of(cls, spec: ModelSpec, device: object, dimensions: int, image: ImageSpec | None, nbytes: int) -> ModelInfo:
        """The info of a model that was loaded for `spec`."""
        return cls(spec.name, spec.key, str(device), dimensions, image, spec.properties_json, nbytes)

    @property
    def anonymous(self) -> ModelInfo:
        """What clients with other credentials may see of a model: its name and its device."""
        return replace(self, key=self.name, dimensions=0, image=None, properties_json="{}", nbytes=0)

    @property
    def shortened(self) -> ModelInfo:
        """A copy for lists of models: long properties are reduced to those that identify a model."""
        length = len(self.properties_json)
        if length <= _LISTED_CHARS:
            return self
        given = json.loads(self.properties_json)
        kept = {name: given.get(name) for name in _IDENTIFYING if len(repr(given.get(name))) <= _LISTED_CHARS // 10}
        listed = {name: value for name, value in kept.items() if value is not None}
        return replace(self, properties_json=canonical_json({**listed, "omitted": f"{length} characters"}))


def _as_json(properties: dict[str, object]) -> str:
    try:
        return canonical_json(properties)
    except (TypeError, ValueError) as error:
        raise RequestError(Fault.REFUSED, f"Invalid model properties: {error}") from None


def _json_with_secrets(value: object) -> str:
    def secret(value: object) -> str:
        return value.get_secret_value()  # type: ignore[attr-defined, no-any-return]

    return json.dumps(value, default=secret)
