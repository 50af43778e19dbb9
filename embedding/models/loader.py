"""From a request's model to a loaded one, checked and warm."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from embedding.errors import Fault, RequestError
from embedding.models.model import Model, Pixels, Rows
from embedding.models.openclip import load_openclip
from embedding.models.properties import RandomProperties, parse_properties
from embedding.models.random import random_vectors
from embedding.models.spec import ModelInfo, ModelSpec

logger = logging.getLogger("ray.serve")


class RandomModel:
    """Marqo's `random` type: no weights; a vector drawn from a generator that the text seeds."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info

    def tokenize(self, texts: Sequence[str]) -> list[str]:
        """Texts are their own tokens."""
        return list(texts)

    def encode_texts(self, tokens: Sequence[list[str]]) -> Rows:
        """See `Model.encode_texts`."""
        return random_vectors([text for texts in tokens for text in texts], self.info.dimensions)

    def encode_images(self, pixels: Sequence[Pixels]) -> Rows:
        """Never called: contents of such a model are embedded as texts, whatever their modality."""
        raise RequestError(Fault.INTERNAL, "a random model takes no pictures")


def load_model(spec: ModelSpec, device: torch.device) -> Model:
    """Loads a model, checks the width of its vectors and runs it once. Blocks for as long as that takes.

    Raises:
        RequestError: REFUSED, with the reason.
    """
    started = time.perf_counter()
    properties = parse_properties(spec.properties)
    model: Model
    if isinstance(properties, RandomProperties):
        model = _random(spec, properties, device)
    else:
        model = load_openclip(spec, properties, device)
    _warm_up(model)
    elapsed = time.perf_counter() - started
    logger.info(f"loaded model {spec.key} on {device} in {elapsed:.2f} s, {model.info.nbytes / 2**20:.1f} MiB")
    return model


def _random(spec: ModelSpec, properties: RandomProperties, device: torch.device) -> RandomModel:
    return RandomModel(
        ModelInfo(
            name=spec.name,
            key=spec.key,
            device=str(device),
            dimensions=properties.dimensions,
            image=None,
            properties_json=spec.properties_json,
            nbytes=0,
        )
    )


def _warm_up(model: Model) -> None:
    """Runs each tower once: what does not fit together must fail here, and not in somebody's first request."""
    info = model.info
    try:
        widths = {"text": model.encode_texts([model.tokenize(["warm-up"])]).shape[1]}
        if info.image is not None:
            widths["image"] = model.encode_images([np.zeros((1, 3, *info.image.size), np.uint8)]).shape[1]
    except Exception as error:
        raise RequestError(
            Fault.REFUSED,
            f"Unable to load model '{info.name}': a trial run failed ({type(error).__name__}: {error}); "
            f"do size, tokenizer and precision fit the architecture?",
        ) from None
    for tower, width in widths.items():
        if width != info.dimensions:
            raise RequestError(
                Fault.REFUSED,
                f"Invalid model properties: dimensions is {info.dimensions}, but the {tower} encoder of "
                f"'{info.name}' gives vectors of {width}",
            )
