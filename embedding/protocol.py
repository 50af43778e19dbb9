"""Marqo's remote-inference protocol: what a request may hold, and how a reply is written.

Source: docs/protocol.md, sections 1.2 to 1.5, 2 and 3. Both spellings of every field are read (camelCase and
snake_case), and all four names of the model key. Members that we do not know are ignored, as Marqo's servers do.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgpack
import msgpack_numpy
import numpy as np
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    PositiveInt,
    SecretStr,
    StrictStr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from embedding.errors import Fault, ItemError, RequestError
from embedding.values import check_values

MSGPACK = "application/msgpack"
SHOWN_PROBLEMS = 10
PART_BYTES = 256 * 2**10
MOST_MEMBERS = 1000
"""Of a map that the client fills as it likes."""
Modality = Literal["language", "image"]
Vectors = list[tuple[str, np.ndarray]]
"""One content's answer: (key, float32 vector of shape (dimensions,)) pairs, one unless text was chunked."""


def _few(value: Any) -> Any:
    if isinstance(value, Mapping) and len(value) > MOST_MEMBERS:
        raise ValueError(f"has {len(value)} members, at most {MOST_MEMBERS} are taken")
    return value


class _Message(BaseModel):
    # Inputs stay out of error texts: they may hold credentials, and a thousand-line document helps nobody.
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        hide_input_in_errors=True,
        protected_namespaces=(),
    )


class S3Auth(_Message):
    """Credentials for one S3 download."""

    aws_access_key_id: str = Field(alias="aws_access_key_id")
    aws_secret_access_key: SecretStr = Field(alias="aws_secret_access_key")
    aws_session_token: SecretStr | None = Field(None, alias="aws_session_token")


class HfAuth(_Message):
    """A Hugging Face access token."""

    token: SecretStr


class ModelAuth(_Message):
    """Exactly one of the two kinds of credentials."""

    s3: S3Auth | None = None
    hf: HfAuth | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelAuth:
        if (self.s3 is None) == (self.hf is None):
            raise ValueError("give exactly one of `s3` and `hf`")
        return self


class ModelConfig(_Message):
    """Which model, and whether its vectors are divided by their length."""

    model_name: StrictStr
    model_properties: Annotated[dict[str, Any], BeforeValidator(_few)] | None = None
    model_auth: ModelAuth | None = None
    normalize_embeddings: bool = True


class ChunkConfig(_Message):
    """How a long text is cut: windows of `split_length` units that share `split_overlap` of them."""

    split_method: Literal["character", "word", "sentence", "passage"]
    split_length: PositiveInt
    split_overlap: int = Field(ge=0)

    @model_validator(mode="after")
    def _advances(self) -> ChunkConfig:
        if self.split_length <= self.split_overlap:
            raise ValueError("splitLength must be greater than splitOverlap")
        return self


class TextConfig(_Message):
    """Preprocessing of texts."""

    modality: Literal["language"] = "language"
    should_chunk: bool = False
    text_prefix: str | None = None
    chunk_config: ChunkConfig | None = None

    @model_validator(mode="after")
    def _chunks_as_said(self) -> TextConfig:
        if self.should_chunk != (self.chunk_config is not None):
            raise ValueError("chunkConfig must be given if, and only if, shouldChunk is true")
        return self


class ImageConfig(_Message):
    """Preprocessing of images. `patch_method` is checked and then not acted on, as in both of Marqo's servers."""

    modality: Literal["image"] = "image"
    should_chunk: bool = False
    download_timeout_ms: int = 3000
    download_thread_count: int | None = None
    download_header: Annotated[dict[str, str], BeforeValidator(_few)] | None = None
    patch_method: Literal["simple", "frcnn", "dino-v1", "dino-v2", "marqo-yolo"] | None = None

    @model_validator(mode="after")
    def _patches_as_said(self) -> ImageConfig:
        if self.should_chunk != (self.patch_method is not None):
            raise ValueError("patchMethod must be given if, and only if, shouldChunk is true")
        return self


def _config_tag(value: Any) -> Any:
    # The older generation lets text leave the tag out; for images both generations refuse that.
    if isinstance(value, dict):
        return value.get("modality", "language")
    return getattr(value, "modality", None)


PreprocessingConfig = Annotated[
    Annotated[TextConfig, Tag("language")] | Annotated[ImageConfig, Tag("image")], Discriminator(_config_tag)
]


def _encodable(text: str) -> str:
    # MessagePack cannot carry a lone surrogate, a handle call can; no tokenizer and no URL takes one.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("holds a lone surrogate, which is not text") from None
    return text


class InferenceRequest(_Message):
    """One `POST /vectorise`."""

    modality: Modality
    # One bad content is told of, not each of a quarter of a million: that would take seconds.
    contents: Annotated[list[Annotated[str, AfterValidator(_encodable)]], FailFast()] = Field(min_length=1)
    device: str | None = None
    model_settings: ModelConfig = Field(
        validation_alias=AliasChoices("embeddingModelConfig", "embedding_model_config", "modelConfig", "model_config")
    )
    preprocessing_config: PreprocessingConfig
    use_inference_cache: bool = False
    return_individual_error: bool = True

    @model_validator(mode="after")
    def _one_modality(self) -> InferenceRequest:
        if self.preprocessing_config.modality != self.modality:
            raise ValueError(
                f"preprocessingConfig for modality '{self.preprocessing_config.modality}' "
                f"does not support modality '{self.modality}'"
            )
        return self


def decode_request(body: bytes | bytearray) -> InferenceRequest:
    """Reads one request body.

    Raises:
        RequestError: MALFORMED if the bytes are not exactly one MessagePack object, TOO_LARGE if it is of too many
            values, INVALID if it breaks the schema; the message names each offending field.
    """
    if not body:
        raise RequestError(Fault.INVALID, "The request body is missing: field required")
    try:
        check_values(body)
        with collector_paused():
            value = msgpack.unpackb(body, strict_map_key=False)
    except RequestError:
        raise
    except Exception as error:
        # msgpack raises half a dozen unrelated types, TypeError for an unhashable key among them.
        reason = str(error) or type(error).__name__
        raise RequestError(Fault.MALFORMED, f"Invalid MessagePack format: {reason}") from None
    return parse_request(value)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No run of Python's garbage collector while the context lasts.

    Megabytes of tiny objects are made at one go here, none of them garbage: looking through them again and again took
    six times as long as making them (0.55 s against 0.09 s for the worst megabyte).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_request(value: object) -> InferenceRequest:
    """Checks a decoded request (a map, or an `InferenceRequest` as it is).

    Raises:
        RequestError: INVALID; the message names each offending field.
    """
    if isinstance(value, InferenceRequest):
        return value
    if not isinstance(value, dict):
        raise RequestError(Fault.INVALID, f"InferenceRequest must be a map, not {type(value).__name__}")
    try:
        return InferenceRequest.model_validate(value)
    except ValidationError as error:
        raise RequestError(Fault.INVALID, explain(error)) from None


def explain(error: ValidationError) -> str:
    """A validation error as text for people: one line for the count, then field and reason; never the values."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    plural = "s" if len(problems) != 1 else ""
    lines = [f"{len(problems)} validation error{plural} for {error.title}"]
    for problem in problems[:SHOWN_PROBLEMS]:
        field = ".".join(str(part) for part in problem["loc"]) or "(request)"
        lines.append(f"{_short(field)}: {_short(problem['msg'])} [type={problem['type']}]")
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"… and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def encode_result(results: Sequence[Vectors | ItemError]) -> bytes:
    """The body of a successful reply: `{"result": [...]}` in MessagePack, arrays as msgpack-numpy writes them."""
    return b"".join(encode_parts(list(results)))


def encode_parts(results: list[Vectors | ItemError]) -> list[bytes]:
    """`encode_result` in parts of some `PART_BYTES`, so that there is no second copy of it at any time.

    Args:
        results: emptied, each as soon as it has been written.
    """
    packer = _packer(autoreset=False)
    packer.pack_map_header(1)
    packer.pack("result")
    packer.pack_array_header(len(results))
    parts: list[bytes] = []
    results.reverse()
    while results:
        item = results.pop()
        if isinstance(item, ItemError):
            packer.pack(_encode_error(item))
        else:
            packer.pack_array_header(len(item))
            for key, vector in item:
                packer.pack((key, vector))
                _cut(packer, parts, PART_BYTES)
        _cut(packer, parts, PART_BYTES)
    _cut(packer, parts, 1)
    return parts


def _cut(packer: msgpack.Packer, parts: list[bytes], least: int) -> None:
    if packer.getbuffer().nbytes >= least:
        parts.append(packer.bytes())
        packer.reset()


def encode_error(detail: str) -> bytes:
    """The body of a failed reply: `{"detail": ...}` in MessagePack."""
    packed: bytes = _packer().pack({"detail": detail})
    return packed


def _encode_error(item: ItemError) -> Mapping[str, object]:
    return {
        "status_code": item.status_code,
        "error_code": item.error_code,
        "error_message": item.message,
    }


def _packer(**options: Any) -> msgpack.Packer:
    # A lone surrogate can reach us in a key or message through a handle call; a reply must still be readable.
    return msgpack.Packer(default=msgpack_numpy.encode, unicode_errors="replace", **options)
