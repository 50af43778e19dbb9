"""Settings of the encoder: its `args` in a config, and its `user_config`."""

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError, field_validator

from deployments.replica import Settings
from embedding.models.cache import MAX_MODELS
from embedding.models.files.options import LoadOptions

PRELOAD_VARIABLE = "MARQO_MODELS_TO_PRELOAD"


class PreloadedModel(Settings):
    """A model that is not in the registry."""

    model: str
    modelProperties: dict[str, Any]


Preload = tuple[str | PreloadedModel, ...]


def _preload_from_environment() -> Any:
    text = os.environ.get(PRELOAD_VARIABLE) or "[]"
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{PRELOAD_VARIABLE} is not JSON: {error}") from None


class EncoderSettings(Settings):
    """Settings for models and their device.

    Args:
        device: "cpu", "cuda" for one GPU for each replica, or "auto": cuda if the cluster has a GPU.
        threads: cores that encode, on a CPU; null is all cores of the machine, however many CPUs Ray was asked for: a
            large model would leave some idle otherwise. Set it lower if several encoders share a machine.
        model_budget_bytes: limit of the weights of all loaded models together, for each replica; 0 is no limit.
        max_models: number of models that are kept, for each replica, whatever their size; `random` models are counted
            separately.
        preload: models to load before a replica takes traffic, as registry names or with their properties; those of
            MARQO_MODELS_TO_PRELOAD are added.
        architectures: folders of open_clip model configs (`ARCH.json`), in addition to those of open_clip.
        models: which models may be loaded, from where and how. The default allows no files of this machine.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
    model_budget_bytes: NonNegativeInt = 0
    max_models: PositiveInt = MAX_MODELS
    preload: Preload = Field(default=(), validate_default=True)
    architectures: tuple[Path, ...] = ()
    models: LoadOptions = LoadOptions()

    @field_validator("preload")
    @classmethod
    def _with_those_of_the_variable(cls, preload: Preload) -> Preload:
        try:
            named = TypeAdapter(Preload).validate_python(_preload_from_environment())
        except ValidationError:
            shape = '["NAME", {"model": "NAME", "modelProperties": {…}}, …]'
            raise ValueError(f"{PRELOAD_VARIABLE} must be a JSON list such as {shape}") from None
        return *preload, *(model for model in named if model not in preload)


class BatchSettings(Settings):
    """The encoder's `user_config`, which can be changed while it runs.

    Args:
        max_image_batch: maximum of pictures in one forward pass; a call with more is run in several passes.
        max_text_batch: the same for texts.
    """

    max_image_batch: PositiveInt = 32
    max_text_batch: PositiveInt = 128
