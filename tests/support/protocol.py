"""docs/protocol.md's own request, changed in one place or another."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import msgpack
import pytest

from embedding.errors import Fault, RequestError
from embedding.protocol import decode_request

# The bytes of docs/protocol.md, section 1.5: a request of the newer generation.
REQUEST = bytes.fromhex(
    "87a86d6f64616c697479a86c616e6775616765a8636f6e74656e747391a26869a6646576696365c0b4656d62656464696e674d6f"
    "64656c436f6e66696784a96d6f64656c4e616d65ac72616e646f6d2f736d616c6caf6d6f64656c50726f7065727469657383a46e"
    "616d65ac72616e646f6d2f736d616c6caa64696d656e73696f6e7320a474797065a672616e646f6da96d6f64656c41757468c0b3"
    "6e6f726d616c697a65456d62656464696e6773c3b370726570726f63657373696e67436f6e66696784a86d6f64616c697479a86c"
    "616e6775616765ab73686f756c644368756e6bc2aa74657874507265666978c0ab6368756e6b436f6e666967c0b1757365496e66"
    "6572656e63654361636865c3b572657475726e496e646976696475616c4572726f72c2"
)

TEXT = msgpack.unpackb(REQUEST)
MODEL = TEXT["embeddingModelConfig"]
CHUNKS = {"splitMethod": "sentence", "splitLength": 2, "splitOverlap": 1}


def changed(path: str = "", value: Any = None, **members: Any) -> dict[str, Any]:
    """The request of docs/protocol.md with other top-level members, and `value` at the dotted `path`."""
    request: dict[str, Any] = deepcopy(TEXT) | members
    if path:
        *parents, last = path.split(".")
        place = request
        for key in parents:
            place = place[key]
        place[last] = value
    return request


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in TEXT.items() if name not in names}


def text(**config: Any) -> dict[str, Any]:
    return changed(preprocessingConfig={"modality": "language", **config})


def image(**config: Any) -> dict[str, Any]:
    return changed(modality="image", preprocessingConfig={"modality": "image", **config})


def refusal(request: object) -> str:
    """The message with which a decoded request is refused; also what its bytes are refused with."""
    with pytest.raises(RequestError) as caught:
        decode_request(msgpack.packb(request))
    assert caught.value.fault is Fault.INVALID
    return caught.value.message
