"""Marqo's remote-inference protocol: reads request bodies, and writes reply bodies (MessagePack, msgpack-numpy arrays).

Source: docs/protocol.md, sections 1.2 to 1.5, 2 and 3. Both spellings of each field are accepted (camelCase and
snake_case), and all four names of the model key. Unknown members are ignored, as Marqo's own servers do. It can be
imported without torch.
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
from embedding.msgpack_values import check_values

MSGPACK = "application/msgpack"
SHOWN_PROBLEMS = 10
PART_BYTES = 256 * 2**10
MAX_MEMBERS = 1000
"""Maximum for a map whose keys the client chooses."""
Modality = Literal["language", "image"]
Vectors = list[tuple[str, np.ndarray]]
"""Result of one item: (key, float32 vector of shape (dimensions,)) pairs, exactly one unless the text was chunked."""


def _check_members(value: Any) -> Any:
    if isinstance(value, Mapping) and len(value) > MAX_MEMBERS:
        raise ValueError(f"has {len(value)} members, at most {MAX_MEMBERS} are taken")
    return value


class _Message(BaseModel):
    # Inputs are kept out of error messages: they may hold credentials, and may be very long.
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
    """Credentials for the download of a model: exactly one of the two kinds."""

    s3: S3Auth | None = None
    hf: HfAuth | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> ModelAuth:
        if (self.s3 is None) == (self.hf is None):
            raise ValueError("give exactly one of `s3` and `hf`")
        return self


class ModelConfig(_Message):
    """Which model, and whether its vectors are normalised to length 1."""

    model_name: StrictStr
    model_properties: Annotated[dict[str, Any], BeforeValidator(_check_members)] | None = None
    model_auth: ModelAuth | None = None
    normalize_embeddings: bool = True


class ChunkConfig(_Message):
    """How a long text is split: windows of `split_length` units, of which neighbours share `split_overlap`."""

    split_method: Literal["character", "word", "sentence", "passage"]
    split_length: PositiveInt
    split_overlap: int = Field(ge=0)

    @model_validator(mode="after")
    def _advances(self) -> ChunkConfig:
        if self.split_length <= self.split_overlap:
            raise ValueError("splitLength must be greater than splitOverlap")
        return self


class TextConfig(_Message):
    """Options of text preprocessing."""

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
    """Options of image preprocessing. `patch_method` is validated and then ignored, as in both of Marqo's servers."""

    modality: Literal["image"] = "image"
    should_chunk: bool = False
    download_timeout_ms: int = 3000
    download_thread_count: int | None = None
    download_header: Annotated[dict[str, str], BeforeValidator(_check_members)] | None = None
    patch_method: Literal["simple", "frcnn", "dino-v1", "dino-v2", "marqo-yolo"] | None = None

    @model_validator(mode="after")
    def _patches_as_said(self) -> ImageConfig:
        if self.should_chunk != (self.patch_method is not None):
            raise ValueError("patchMethod must be given if, and only if, shouldChunk is true")
        return self


def _config_tag(value: Any) -> Any:
    # In Marqo's older generation the tag is optional for texts; for images it is required in both generations.
    if isinstance(value, dict):
        return value.get("modality", "language")
    return getattr(value, "modality", None)


PreprocessingConfig = Annotated[
    Annotated[TextConfig, Tag("language")] | Annotated[ImageConfig, Tag("image")], Discriminator(_config_tag)
]


def _encodable(text: str) -> str:
    # A MessagePack body cannot contain a lone surrogate, but a call through a deployment handle can. Neither tokenizers
    # nor URLs accept one.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("holds a lone surrogate, which is not text") from None
    return text


class InferenceRequest(_Message):
    """The body of one `POST /vectorise`. `contents` are its items: texts, or URLs and data URIs of images."""

    modality: Modality
    # Only the first bad item is reported: reporting each of 250,000 would take seconds.
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
    """Reads one request body, MessagePack.

    Raises:
        RequestError: MALFORMED if the bytes are not exactly one MessagePack object, TOO_LARGE if it holds too many
            values, INVALID if it does not match the schema; the message names each offending field.
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
    """Disables Python's garbage collector while the context lasts.

    Decoding creates megabytes of small objects at once, none of which is garbage. The collector would examine them
    again and again, which took six times as long as creating them (0.55 s against 0.09 s for the worst megabyte).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_request(value: object) -> InferenceRequest:
    """Validates a decoded request.

    Args:
        value: a map; an `InferenceRequest` is returned unchanged.

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
    """A validation error as text for people: a line with the count, then field and reason; values are never shown."""
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
    """The body of a successful reply: `{"result": [...]}` in MessagePack, with one entry per item, in order.

    Vectors are written as msgpack-numpy writes arrays.
    """
    return b"".join(encode_parts(list(results)))


def encode_parts(results: list[Vectors | ItemError]) -> list[bytes]:
    """As `encode_result`, but in parts of about `PART_BYTES`, so that results and body are never both whole in memory.

    Args:
        results: one for each item. The list is emptied: each result is dropped as soon as it has been written.

    Returns:
        The parts of the body, in order.
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
                _flush(packer, parts, PART_BYTES)
        _flush(packer, parts, PART_BYTES)
    _flush(packer, parts, 1)
    return parts


def _flush(packer: msgpack.Packer, parts: list[bytes], min_bytes: int) -> None:
    if packer.getbuffer().nbytes >= min_bytes:
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
    # A key or message of a call through a deployment handle may hold a lone surrogate; the reply must still be valid.
    return msgpack.Packer(default=msgpack_numpy.encode, unicode_errors="replace", **options)
