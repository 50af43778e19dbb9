"""`modelProperties`, checked: one type for each family of models. Source: protocol sheet, section 7.

Members that we do not know (`notes`, `pretrained`, `triton…`, prefixes that the API applies) are ignored.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from embedding.errors import Fault, RequestError
from embedding.protocol import explain

Vector3 = tuple[float, float, float]
SERVED_TYPES = ("open_clip", "random")


def _either(camel: str, snake: str) -> AliasChoices:
    return AliasChoices(camel, snake)


class _Properties(BaseModel):
    model_config = ConfigDict(
        extra="ignore", frozen=True, hide_input_in_errors=True, populate_by_name=True, protected_namespaces=()
    )


class RandomProperties(_Properties):
    """Vectors drawn from a generator seeded by the content: for tests of everything around a model."""

    type: Literal["random"]
    dimensions: PositiveInt


class OpenClipProperties(_Properties):
    """An open_clip model: a hub repository, a built-in pretrained tag, or an architecture and a checkpoint."""

    type: Literal["open_clip"] = "open_clip"
    name: str
    dimensions: PositiveInt
    localpath: str | None = None
    url: str | None = None
    location: dict[str, Any] | None = Field(None, validation_alias=_either("modelLocation", "model_location"))
    jit: bool = False
    precision: Literal["fp32", "fp16"] = "fp32"
    tokenizer: str | None = None
    preset: Literal["OpenCLIP", "OpenAI", "SigLIP", "CLIPA"] = Field(
        "OpenCLIP", validation_alias=_either("imagePreprocessor", "image_preprocessor")
    )
    mean: Vector3 | None = None
    std: Vector3 | None = None
    size: PositiveInt = 224

    @model_validator(mode="after")
    def _one_source(self) -> OpenClipProperties:
        if sum(source is not None for source in (self.localpath, self.url, self.location)) > 1:
            raise ValueError("give at most one of `url`, `localpath` and `modelLocation`")
        return self

    @property
    def has_checkpoint(self) -> bool:
        """Whether the weights come from a file that the request names (resolution rule 1)."""
        return any(source is not None for source in (self.localpath, self.url, self.location))


Properties = RandomProperties | OpenClipProperties
_FAMILIES: dict[str, type[RandomProperties] | type[OpenClipProperties]] = {
    "random": RandomProperties,
    "open_clip": OpenClipProperties,
}


def parse_properties(properties: dict[str, object]) -> Properties:
    """Checks a model's properties.

    Raises:
        RequestError: REFUSED, naming the field, or the type and the types that are served.
    """
    family = properties.get("type", "open_clip")
    if family == "no_model":
        raise RequestError(Fault.REFUSED, "Unsupported model type: cannot vectorise anything with 'no_model'")
    if not isinstance(family, str) or family not in _FAMILIES:
        served = ", ".join(SERVED_TYPES)
        raise RequestError(Fault.REFUSED, f"Unsupported model type {family!r}; served are: {served}")
    try:
        return _FAMILIES[family].model_validate(properties)
    except ValidationError as error:
        raise RequestError(Fault.REFUSED, f"Invalid model properties: {explain(error)}") from None
