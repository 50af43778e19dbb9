"""How a model wants its pictures is asked once, and remembered of the models that are in use."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from deployments.ingress.admission import Admission, Load
from deployments.ingress.images import ImageFanOut
from deployments.ingress.pipeline import Pipeline
from deployments.ingress.texts import TextFanOut
from embedding.meter import Meter
from embedding.models.spec import ModelInfo, ModelSpec
from embedding.protocol import parse_request
from tests.support.handles import handle_of


class Encoder:
    """Its models embed texts only."""

    def __init__(self) -> None:
        self.described: list[str] = []

    async def describe(self, spec: ModelSpec) -> ModelInfo:
        self.described.append(spec.name)
        return ModelInfo.of(spec, "cpu", 4, None, 0)

    async def encode_texts(self, spec: ModelSpec, texts: list[str], *_: Any) -> np.ndarray:
        return np.zeros((len(texts), 4), np.float32)


def test_the_model_that_was_not_used_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.pipeline.KNOWN_MODELS", 2)
    encoder = Encoder()

    async def main() -> None:
        handle, nobody = handle_of(describe=encoder.describe, encode_texts=encoder.encode_texts), handle_of()
        pipeline = Pipeline(
            ImageFanOut(nobody, handle, 32, 10**9, Meter()), TextFanOut(nobody, handle, 32, 100, 10**9, Meter()), handle
        )
        admission = Admission(10**9, "any")
        for model in ("hot", "a", "hot", "b", "hot", "a"):
            request = {
                "modality": "image",
                "contents": ["https://pictures.example/1.jpg"],
                "modelConfig": {"modelName": model, "modelProperties": {"name": model, "dimensions": 4}},
                "preprocessingConfig": {"modality": "image"},
            }
            with admission.share() as work, admission.share() as downloads, admission.share() as expanded:
                load = Load(work, downloads, expanded)
                answers = await pipeline.embed(parse_request(request), load, deadline=1e9)
            assert len(answers) == 1

    asyncio.run(main())
    assert encoder.described == ["hot", "a", "b", "a"]
