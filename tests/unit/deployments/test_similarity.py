"""The form of `/ui`: what it may hold, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from deployments.ingress.calls import Answers
from deployments.ingress.similarity import read_pair, similarity
from embedding.errors import Fault, ItemError, RequestError
from embedding.protocol import parse_request

FORM = {"model": "demo/clip", "text": "a red circle", "image": "http://host/1.png"}


def body(**changes: Any) -> bytes:
    return json.dumps(FORM | changes).encode()


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        body(extra=1),
        body(text=""),
        body(image=["a"]),
        body(modelProperties="x"),
        b'{"text": "a"}',
        b"[" * 100_000,
    ],
)
def test_a_bad_form_is_refused_without_repeating_it(bad: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_pair(bad)
    assert caught.value.fault is Fault.INVALID
    assert len(caught.value.message) < 1000


def test_a_form_becomes_two_requests_of_the_protocol() -> None:
    seen = []

    async def embed(request: Mapping[str, Any]) -> Answers:
        parsed = parse_request(request)
        seen.append((parsed.modality, parsed.contents, parsed.model_settings.model_properties))
        row = [1.0, 0.0] if parsed.modality == "image" else [0.6, 0.8]
        return [[("key", np.array(row, np.float32))]]

    assert asyncio.run(similarity(read_pair(body(modelProperties={"type": "random"})), embed)) == 0.6
    assert sorted(seen) == [
        ("image", ["http://host/1.png"], {"type": "random"}),
        ("language", ["a red circle"], {"type": "random"}),
    ]


def test_an_item_without_a_vector_is_the_forms_error() -> None:
    async def embed(request: Mapping[str, Any]) -> Answers:
        return [ItemError("media url `x` returned 404")]

    with pytest.raises(RequestError, match="returned 404") as caught:
        asyncio.run(similarity(read_pair(body()), embed))
    assert caught.value.fault is Fault.REFUSED
