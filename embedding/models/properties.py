"""`modelProperties` of a request, validated: one class for each family of models. Source: docs/protocol.md, section 7.

Unknown members (`notes`, `pretrained`, `model_size`, prefixes that Marqo's API applies) are ignored.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from embedding.errors import Fault, RequestError
from embedding.models.spec import MAX_DIMENSIONS
from embedding.protocol import explain
from embedding.shown import shown

SERVED_TYPES = ("open_clip", "hf", "hf_stella", "random")
Vector3 = tuple[float, float, float]
Scale = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]
# Upper bounds far beyond any model: one number in a request must not be able to fill the machine's memory.
Dimensions = Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)]
Side = Annotated[int, Field(ge=1, le=2048)]
Tower = Literal["text", "image"]


def _either(camel: str, snake: str) -> AliasChoices:
    return AliasChoices(camel, snake)


class _BaseProperties(BaseModel):
    model_config = ConfigDict(
        extra="ignore", frozen=True, hide_input_in_errors=True, populate_by_name=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        """Marqo's clients write null for members that they leave out (section 1.5)."""
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given


class S3Location(_BaseProperties):
    """An object in S3."""

    bucket: str = Field(min_length=1, validation_alias="Bucket")
    key: str = Field(min_length=1, validation_alias="Key")


class HfLocation(_BaseProperties):
    """A repository of the hub, or one file of it."""

    repo_id: str = Field(min_length=1, validation_alias=_either("repoId", "repo_id"))
    filename: str | None = None


class ModelLocation(_BaseProperties):
    """Where the weights are if not behind a plain URL: in S3 or in a repository of the hub."""

    s3: S3Location | None = None
    hf: HfLocation | None = None
    auth_required: bool = Field(False, validation_alias=_either("authRequired", "auth_required"))

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelLocation:
        if (self.s3 is None) == (self.hf is None):
            raise ValueError("give exactly one of `s3` and `hf`")
        return self

    @property
    def canonical(self) -> dict[str, Any]:
        """As in a request, but in one spelling: {"s3": {"Bucket", "Key"}} or {"hf": {"repoId", "filename"?}}."""
        location: dict[str, Any] = {"authRequired": self.auth_required}
        if self.s3 is not None:
            location["s3"] = {"Bucket": self.s3.bucket, "Key": self.s3.key}
        if self.hf is not None:
            location["hf"] = {"repoId": self.hf.repo_id}
            if self.hf.filename is not None:
                location["hf"]["filename"] = self.hf.filename
        return location

    @property
    def filename(self) -> str | None:
        """The file that it names; None for a whole repository."""
        return self.s3.key if self.s3 is not None else self.hf.filename if self.hf is not None else None


class TritonTensor(_BaseProperties):
    """One input or output of an exported encoder."""

    name: str = Field(min_length=1)
    dims: tuple[int, ...] = ()
    data_type: str = Field("", validation_alias=_either("dataType", "data_type"))


class TritonEncoder(_BaseProperties):
    """One exported tower, as newer Marqo versions describe it to a Triton server (section 7.2)."""

    name: str
    max_batch_size: int = Field(8, ge=1, le=128, validation_alias=_either("maxBatchSize", "max_batch_size"))
    sources: tuple[str, ...] = Field(min_length=1, max_length=5)
    input: tuple[TritonTensor, ...] = Field(min_length=1, max_length=3)
    output: tuple[TritonTensor, ...] = Field(min_length=1, max_length=1)

    @model_validator(mode="after")
    def _one_graph(self) -> TritonEncoder:
        names = [file_name(source) for source in self.sources]
        if any(name != "model.onnx" and not name.startswith("model.onnx.data") for name in names):
            raise ValueError("the files of `sources` must be called model.onnx or model.onnx.data…")
        if names.count("model.onnx") != 1 or len(set(names)) != len(names):
            raise ValueError("`sources` must name one model.onnx, and each file of its data once")
        return self


class RandomProperties(_BaseProperties):
    """Vectors drawn from a generator that the item seeds: for tests of everything around a model."""

    type: Literal["random"]
    dimensions: Dimensions


class _WithEncoders(_BaseProperties):
    # Not validated here: they do not matter if torch runs the model.
    triton_text: Any = Field(
        None, validation_alias=_either("tritonTextEncoderProperties", "triton_text_encoder_properties")
    )
    triton_image: Any = Field(
        None, validation_alias=_either("tritonImageEncoderProperties", "triton_image_encoder_properties")
    )

    def triton_encoder(self, tower: Tower) -> TritonEncoder:
        """The exported encoder of a tower.

        Raises:
            RequestError: REFUSED, naming the member, if there is none or it is malformed.
        """
        member = f"triton{tower.capitalize()}EncoderProperties"
        given = self.triton_text if tower == "text" else self.triton_image
        if given is None:
            reason = f"the server runs this model with ONNX Runtime (backend: onnx), so `{member}` must be given"
            raise RequestError(Fault.REFUSED, f"Invalid model properties: {reason}")
        try:
            return TritonEncoder.model_validate(given)
        except ValidationError as error:
            raise RequestError(Fault.REFUSED, f"Invalid model properties: {member}: {explain(error)}") from None


class OpenClipProperties(_WithEncoders):
    """An open_clip model: a hub repository, a built-in pretrained tag, or an architecture and a checkpoint."""

    type: Literal["open_clip"] = "open_clip"
    name: str
    dimensions: Dimensions
    localpath: str | None = None
    url: str | None = None
    model_location: ModelLocation | None = Field(None, validation_alias=_either("modelLocation", "model_location"))
    jit: bool = False
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    tokenizer: str | None = None
    preset: Literal["OpenCLIP", "OpenAI", "SigLIP", "CLIPA"] = Field(
        "OpenCLIP", validation_alias=_either("imagePreprocessor", "image_preprocessor")
    )
    mean: Vector3 | None = None
    std: tuple[Scale, Scale, Scale] | None = None
    size: Side = 224

    @model_validator(mode="after")
    def _one_source(self) -> OpenClipProperties:
        if sum(source is not None for source in (self.localpath, self.url, self.model_location)) > 1:
            raise ValueError("give at most one of `url`, `localpath` and `modelLocation`")
        return self

    @property
    def location(self) -> dict[str, Any] | None:
        """`modelLocation`, see `ModelLocation.canonical`."""
        return None if self.model_location is None else self.model_location.canonical

    @property
    def has_checkpoint(self) -> bool:
        """Whether the weights come from a file that the request names (resolution rule 1)."""
        return any(source is not None for source in (self.localpath, self.url, self.model_location))


class HfProperties(_WithEncoders):
    """A transformers text model: a hub repository, or an archive or folder with the files of one. A `name` takes
    precedence over the other sources.

    `localpath` is an extension of Marqo's protocol, which has it for open_clip models only.
    """

    type: Literal["hf", "hf_stella"]
    name: str | None = Field(None, min_length=1)
    dimensions: Dimensions
    localpath: str | None = None
    url: str | None = None
    model_location: ModelLocation | None = Field(None, validation_alias=_either("modelLocation", "model_location"))
    tokens: PositiveInt = 128
    pooling: Literal["mean", "cls"] | None = Field(None, validation_alias=_either("poolingMethod", "pooling_method"))
    trust_remote_code: bool = Field(False, validation_alias=_either("trustRemoteCode", "trust_remote_code"))

    @model_validator(mode="after")
    def _sources(self) -> HfProperties:
        files = [source for source in (self.localpath, self.url, self.model_location) if source is not None]
        if len(files) > 1:
            raise ValueError("give at most one of `url`, `localpath` and `modelLocation`")
        if self.name is None and not files:
            raise ValueError("give one of `name`, `url` and `modelLocation`")
        named = self.model_location.filename if self.model_location is not None else self.url or self.localpath
        if self.name is None and named is not None and file_name(named).endswith((".bin", ".pt")):
            raise ValueError(
                "`url` and `modelLocation` of an hf model must be an archive (zip or tar) of a whole repository: "
                ".bin and .pt files are not served"
            )
        return self

    @property
    def location(self) -> dict[str, Any] | None:
        """`modelLocation`, see `ModelLocation.canonical`."""
        return None if self.model_location is None else self.model_location.canonical

    @model_validator(mode="after")
    def _stella_is_code(self) -> HfProperties:
        if self.type == "hf_stella" and not self.trust_remote_code:
            raise ValueError("`trustRemoteCode` must be true for an hf_stella model")
        return self


ModelProperties = RandomProperties | OpenClipProperties | HfProperties
_FAMILIES: dict[str, type[RandomProperties] | type[OpenClipProperties] | type[HfProperties]] = {
    "random": RandomProperties,
    "open_clip": OpenClipProperties,
    "hf": HfProperties,
    "hf_stella": HfProperties,
}


def parse_properties(properties: dict[str, object]) -> ModelProperties:
    """Checks a model's properties.

    Raises:
        RequestError: REFUSED, naming the field, or the type and the types that are served.
    """
    family = properties.get("type", "open_clip")
    if family == "no_model":
        raise RequestError(Fault.REFUSED, "Unsupported model type: cannot vectorise anything with 'no_model'")
    if not isinstance(family, str) or family not in _FAMILIES:
        served = ", ".join(SERVED_TYPES)
        raise RequestError(Fault.REFUSED, f"Unsupported model type {shown(repr(family))}; served are: {served}")
    try:
        return _FAMILIES[family].model_validate(properties)
    except ValidationError as error:
        raise RequestError(Fault.REFUSED, f"Invalid model properties: {explain(error)}") from None


def file_name(address: str) -> str:
    """The base name of a URL, an S3 address or a path, without a URL's query."""
    path = urlsplit(address).path if "://" in address else address
    return PurePosixPath(path).name
