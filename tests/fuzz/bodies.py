"""Request bodies through all that reads them before work begins, and what may come of it."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np

from embedding.errors import Fault, ItemError, MediaError, RequestError
from embedding.fetch.data_uri import decode_data_uri
from embedding.fetch.url import parse_url
from embedding.models.properties import OpenClipProperties, parse_properties
from embedding.models.spec import ModelSpec
from embedding.msgpack_values import check_values
from embedding.protocol import (
    ImageConfig,
    InferenceRequest,
    collector_paused,
    decode_request,
    encode_error,
    encode_result,
    parse_request,
)
from tests.fuzz.making import PYTHON, make_body, nested
from tests.fuzz.target import Finding

CLIENT_FAULTS = frozenset({Fault.MALFORMED, Fault.INVALID, Fault.REFUSED, Fault.TOO_LARGE})
"""Those for which a reply has a status of 4xx."""
MOST_MESSAGE_CHARS = 4000
STACK = 60


class Bodies:
    """Request bodies through the decoder and everything else that looks into them before work begins."""

    name = "requests"
    deadline_s = 0.5
    memory_bytes = 64 * 2**20

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`."""
        return make_body(seed, index)

    def run(self, data: bytes, index: int) -> str:
        """Twice: as a body over HTTP, and, with what only Python can express, as the argument of a handle call."""
        outcome = _understood(decode_request, data)
        try:
            check_values(data)
            with collector_paused():
                value = msgpack.unpackb(data, strict_map_key=False, ext_hook=_from_python, object_hook=_array)
        except Exception:
            return outcome
        _understood(parse_request, value)
        return outcome


def _understood(parse: Any, given: Any) -> str:
    try:
        request = parse(given)
    except RequestError as error:
        return _refused(error)
    if not isinstance(request, InferenceRequest):
        raise Finding("no request", type(request).__name__)
    items = [_looked_at(content, request) for content in request.contents[:5]]
    _readable(encode_result(items))
    try:
        spec = ModelSpec.from_config(request.model_settings, request.device)
        hash(spec), spec.key, spec.digest
        properties = parse_properties(_read_below(spec, STACK))
        if isinstance(properties, OpenClipProperties):
            properties.triton_encoder("text")
    except RequestError as error:
        return _refused(error)
    return "valid"


def _read_below(spec: ModelSpec, frames: int) -> dict[str, object]:
    """The properties, as an encoder reads them: further down its stack than the ingress when it wrote them."""
    return _read_below(spec, frames - 1) if frames else spec.properties


def _looked_at(content: str, request: InferenceRequest) -> Any:
    """A content as a preprocessor begins with it, and an answer for it."""
    if isinstance(request.preprocessing_config, ImageConfig):
        try:
            if content.startswith("data:image/"):
                decode_data_uri(content, 1 << 20)
            else:
                parse_url(content)
        except MediaError as error:
            _told(error.message)
            return ItemError(error.message)
    return [(content, np.zeros(2, np.float32))]


def _refused(error: RequestError) -> str:
    if error.fault not in CLIENT_FAULTS:
        raise Finding("wrong fault", f"{error.fault}: {error.message}")
    _told(error.message)
    _readable(encode_error(error.message))
    # Which rule spoke: the words before anything of the request's own.
    return f"{error.fault.value}: {re.split(r'[^A-Za-z ]', error.message.lstrip('0123456789 '))[0][:40]}"


def _told(message: object) -> None:
    if not isinstance(message, str) or not message.strip():
        raise Finding("no message", repr(message))
    if len(message) > MOST_MESSAGE_CHARS:
        raise Finding("long message", f"{len(message)} characters, {message[:80]!r}")
    for character in message:
        if not character.isprintable() and character != "\n" and ord(character) < 0x7F:
            raise Finding("control character", repr(message[:200]))


def _readable(reply: bytes) -> None:
    msgpack.unpackb(reply, object_hook=msgpack_numpy.decode)


def _array(value: dict[Any, Any]) -> Any:
    """msgpack-numpy's arrays, but for those of objects: it takes bytes for a pickle or even for pointers."""
    described = [value.get(key) for key in ("kind", b"kind", "type", b"type")]
    return value if "O" in str(described) else msgpack_numpy.decode(value)


def _from_python(code: int, data: bytes) -> Any:
    """Values that MessagePack does not know, for extension types from PYTHON on."""
    return _only_python(code, min(len(data), 8)) if PYTHON <= code < PYTHON + 8 else msgpack.ExtType(code, data)


@cache
def _only_python(code: int, size: int) -> Any:
    """Made once each: a body can hold thousands of them, and their memory is the fuzzer's, not the server's."""
    match code - PYTHON:
        case 0:
            return 10 ** (100 * size + 5000)
        case 1:
            return "\ud800" * (size + 1)
        case 2:
            return np.zeros(size, np.float32)
        case 3:
            return {1, "a", None}
        case 4:
            return nested(500 * size, [])
        case 5:
            return nested(500 * size, {})
        case 6:
            return ("tuple", object(), 1j, b"bytes", ...)
        case 7:
            return {None: 1, 2: 3, "\udfff": b"x", (1, 2): object}
    raise ValueError(code)
