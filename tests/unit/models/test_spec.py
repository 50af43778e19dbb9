"""From a request's model to what identifies it."""

from __future__ import annotations

import json

import pytest

from embedding.errors import Fault, RequestError
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from tests.support.models import spec


def test_a_name_of_the_registry_needs_no_properties() -> None:
    from_name = ModelSpec.from_config(ModelConfig(model_name="random/small"))
    assert from_name.properties["dimensions"] == 32
    assert from_name.key == "random/small||8c36"  # section 8.1


def test_an_unknown_name_without_properties() -> None:
    with pytest.raises(RequestError, match="'mine' is not in the registry") as caught:
        ModelSpec.from_config(ModelConfig(model_name="mine"))
    assert caught.value.fault is Fault.REFUSED


@pytest.mark.parametrize("value", [b"bytes", float("nan"), {1: "a", "b": 2}, {b"x": 1}, "\ud800"])
def test_properties_that_are_no_json(value: object) -> None:
    with pytest.raises(RequestError, match="Invalid model properties") as caught:
        spec(notes=value)
    assert caught.value.fault is Fault.REFUSED


def test_credentials_reach_the_loader_and_nobody_else() -> None:
    config = {"model_name": "a", "model_properties": {}, "model_auth": {"hf": {"token": "hunter2"}}}
    with_auth = ModelSpec.from_config(ModelConfig.model_validate(config))
    assert json.loads(with_auth.auth_json or "") == {"hf": {"token": "hunter2"}}
    assert "hunter2" not in repr(with_auth)
    assert with_auth == ModelSpec.from_config(ModelConfig(model_name="a", model_properties={}))
