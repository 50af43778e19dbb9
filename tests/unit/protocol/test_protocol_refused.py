"""Requests that are refused, by which names and in which words: docs/protocol.md, sections 2 and 3."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from embedding.errors import MESSAGE_CHARS, Fault, RequestError
from embedding.protocol import parse_request
from tests.support.protocol import CHUNKS, REQUEST, changed, image, refusal, text, without

S3 = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}


def chunked(**config: Any) -> dict[str, Any]:
    return text(shouldChunk=True, chunkConfig=CHUNKS | config)


def with_auth(auth: Any) -> dict[str, Any]:
    return changed("embeddingModelConfig.modelAuth", auth)


def each(*values: Any) -> tuple[Any, ...]:
    """Values of any types."""
    return values


# (field named in the message, request)
INVALID: list[tuple[str, object]] = [
    ("modality", without("modality")),
    ("contents", without("contents")),
    ("embeddingModelConfig", without("embeddingModelConfig")),
    ("preprocessingConfig", without("preprocessingConfig")),
    *(
        ("modality", changed(modality=value))
        for value in each("text", "audio", "video", "LANGUAGE", "", None, 1, ["image"])
    ),
    *(("contents", changed(contents=value)) for value in each([], None, "hi", {"a": "b"}, 3)),
    *(("contents.1", changed(contents=["a", value])) for value in each(1, None, 1.5, True, ["b"], {}, b"\xff")),
    *(("device", changed(device=value)) for value in each(0, ["cpu"], {})),
    *(("useInferenceCache", changed(useInferenceCache=value)) for value in each(None, "maybe", 2, [])),
    *(("returnIndividualError", changed(returnIndividualError=value)) for value in each(None, "", {})),
    *(("embeddingModelConfig", changed(embeddingModelConfig=value)) for value in each(None, "random", [], 1)),
    ("modelName", changed(embeddingModelConfig={})),
    *(("modelName", changed("embeddingModelConfig.modelName", value)) for value in each(None, 1, b"random", [])),
    *(("modelProperties", changed("embeddingModelConfig.modelProperties", value)) for value in each("x", [], 1)),
    *(("normalizeEmbeddings", changed("embeddingModelConfig.normalizeEmbeddings", value)) for value in each(None, "x")),
    *(("modelAuth", with_auth(value)) for value in each({}, "x", [], {"s3": S3, "hf": {"token": "t"}}, {"gcs": {}})),
    ("modelAuth.hf.token", with_auth({"hf": {}})),
    ("modelAuth.hf.token", with_auth({"hf": {"token": 5}})),
    ("aws_secret_access_key", with_auth({"s3": {"aws_access_key_id": "a"}})),
    ("aws_access_key_id", with_auth({"s3": {"aws_secret_access_key": "a"}})),
    *(("preprocessingConfig", changed(preprocessingConfig=value)) for value in each(None, "language", [], 1)),
    *(("preprocessingConfig", text(modality=value)) for value in each("audio", "video", "text", None, 1, 1.5, True)),
    *(("preprocessingConfig", text(modality=value)) for value in each([], ["language"], {}, {"a": []}, b"language")),
    ("preprocessingConfig", changed(modality="image")),
    ("preprocessingConfig", changed(preprocessingConfig={"modality": "image"})),
    # For images both generations insist on the tag.
    ("preprocessingConfig", changed(modality="image", preprocessingConfig={})),
    ("chunkConfig", text(shouldChunk=True)),
    ("chunkConfig", text(shouldChunk=True, chunkConfig=None)),
    ("chunkConfig", text(shouldChunk=False, chunkConfig=CHUNKS)),
    ("chunkConfig", text(chunkConfig=CHUNKS)),
    ("shouldChunk", text(shouldChunk="perhaps")),
    ("shouldChunk", text(shouldChunk=None)),
    ("textPrefix", text(textPrefix=1)),
    ("splitMethod", chunked(splitMethod="token")),
    ("splitMethod", text(shouldChunk=True, chunkConfig={"splitLength": 2, "splitOverlap": 1})),
    *(("splitLength", chunked(splitLength=value, splitOverlap=0)) for value in each(0, -1, None, "two", 1.5)),
    *(("splitOverlap", chunked(splitOverlap=value)) for value in each(-1, None, "one", 0.5)),
    ("splitLength", chunked(splitLength=2, splitOverlap=2)),
    ("splitLength", chunked(splitLength=2, splitOverlap=3)),
    ("patchMethod", image(shouldChunk=True)),
    ("patchMethod", image(patchMethod="simple")),
    ("patchMethod", image(shouldChunk=True, patchMethod="overlap")),
    *(("downloadTimeoutMs", image(downloadTimeoutMs=value)) for value in each(None, "soon", [], 1.5, float("nan"))),
    *(("downloadThreadCount", image(downloadThreadCount=value)) for value in each("many", [], 0.5, float("inf"))),
    *(("downloadHeader", image(downloadHeader=value)) for value in each("A: b", [], {"A": 1}, {"A": None}, {1: "a"})),
]


@pytest.mark.parametrize(("field", "request_"), INVALID, ids=lambda value: value if isinstance(value, str) else "")
def test_every_rule_names_its_field(field: str, request_: object) -> None:
    message = refusal(request_)
    assert field in message
    assert "validation error" in message


def test_modalities_must_agree() -> None:
    assert "does not support modality" in refusal(changed(modality="image"))


def test_all_problems_are_told_at_once() -> None:
    message = refusal({"invalid_field": 1})
    assert message.startswith("4 validation errors for InferenceRequest")
    assert message.count("Field required") == 4
    for field in ("modality", "contents", "embeddingModelConfig", "preprocessingConfig"):
        assert f"\n{field}: " in message


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "request", b"request", [], [REQUEST], [["modality", "image"]]])
def test_what_is_not_a_map(value: object) -> None:
    assert "must be a map" in refusal(value)


SECRET = "hunter2-is-a-secret"


@pytest.mark.parametrize(
    "request_",
    [
        with_auth({"hf": {"token": SECRET}, "s3": {}}),
        with_auth({"hf": {"token": SECRET}, "s3": {"aws_access_key_id": "a", "aws_secret_access_key": SECRET}}),
        with_auth({"s3": {"aws_secret_access_key": SECRET, "aws_session_token": SECRET}}),
        with_auth({"hf": {"token": [SECRET]}}),
        with_auth({"hf": SECRET}),
        with_auth(SECRET),
        image(downloadHeader={"Authorization": [SECRET]}),
        image(downloadHeader=SECRET),
        changed(contents=["ok", {"a": SECRET}]),
        changed("embeddingModelConfig.modelProperties", SECRET),
    ],
)
def test_errors_repeat_no_values(request_: dict[str, Any]) -> None:
    assert SECRET not in refusal(request_)


def test_credentials_are_shown_nowhere() -> None:
    request = parse_request(with_auth({"s3": S3 | {"aws_secret_access_key": SECRET, "aws_session_token": SECRET}}))
    assert SECRET not in repr(request) + str(request)


def test_an_error_stays_short_however_long_its_cause() -> None:
    """It goes into a log and into a user's browser."""
    for long in (
        text(modality="x" * 1_000_000),
        changed(contents=[1] * 10_000),
        image(downloadHeader={"x" * 10**6: 1}),
    ):
        assert len(refusal(long)) < 5_000


def test_a_message_is_of_bounded_length_and_steers_no_terminal() -> None:
    error = RequestError(Fault.REFUSED, "a\nb\r\x1b[31m\x00\x85" + "x" * 10**6)
    assert error.message.startswith(r"a" + "\n" + r"b\r\x1b[31m\x00\x85xx")
    assert len(error.message) <= MESSAGE_CHARS
    assert pickle.loads(pickle.dumps(error)).message == error.message
