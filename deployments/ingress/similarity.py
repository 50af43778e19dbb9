"""The form of `/ui`: a text and a picture, embedded by the same model, and the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

from deployments.ingress.calls import Answers, run_concurrently
from deployments.ingress.replies import problems
from embedding.errors import Fault, ItemError, RequestError


class Pair(BaseModel):
    """The JSON of a form. It becomes two requests as `POST /vectorise` takes them.

    Args:
        model: registry name, or any label if properties are given.
        text: one text.
        image: URL or data URI of a picture.
        properties: `modelProperties`, as Marqo has them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, protected_namespaces=())

    model: StrictStr = Field(min_length=1)
    text: StrictStr = Field(min_length=1)
    image: StrictStr = Field(min_length=1)
    properties: dict[str, Any] | None = Field(None, alias="modelProperties")


def read_pair(body: bytes) -> Pair:
    """The form in a body.

    Raises:
        RequestError: INVALID.
    """
    try:
        return Pair.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(Fault.INVALID, problems(error.errors(include_input=False))) from None


async def similarity(pair: Pair, embed: Callable[[Mapping[str, Any]], Awaitable[Answers]]) -> float:
    """Cosine of the vectors of text and picture, from -1 to 1.

    Args:
        pair: the form.
        embed: answers a request as `Ingress.vectorise` does.

    Raises:
        RequestError: REFUSED for an item that has no vector, and whatever `embed` raises.
    """
    requests = [_request(pair, "language", pair.text), _request(pair, "image", pair.image)]
    answers = await run_concurrently([(0, partial(embed, one)) for one in requests], 1)
    text, picture = (_vector(answer) for (answer,) in answers)
    return round(float(np.clip(text @ picture, -1.0, 1.0)), 4)


def _request(pair: Pair, modality: str, item: str) -> Mapping[str, Any]:
    return {
        "modality": modality,
        "contents": [item],
        "modelConfig": {"modelName": pair.model, "modelProperties": pair.properties, "normalizeEmbeddings": True},
        "preprocessingConfig": {"modality": modality},
    }


def _vector(answer: Any) -> Any:
    if isinstance(answer, ItemError):
        raise RequestError(Fault.REFUSED, answer.message)
    return answer[0][1]
