"""Models that a replica loads before it takes traffic: from the config or from Marqo's variable (section 8.4)."""

import json

import pytest

from benchmarks.lib.places import ROOT
from deployments.encoder.settings import PRELOAD_VARIABLE, EncoderSettings, PreloadedModel
from deployments.ray_internals import for_this_thread
from graph import GraphArgs
from operations.config_file import read_config
from tests.support.marqo_client import MarqoClient
from tests.support.serve import MINE, Serve
from tests.support.serve import preloading_config as config


def test_the_variable_and_the_config_both_name_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRELOAD_VARIABLE, json.dumps(["demo/clip", MINE]))
    mine = PreloadedModel.model_validate(MINE)
    assert EncoderSettings().preload == ("demo/clip", mine)
    both = EncoderSettings.model_validate({"preload": ["random/small", MINE]})
    assert both.preload == ("random/small", mine, "demo/clip")
    for nothing in ("", "[]"):
        monkeypatch.setenv(PRELOAD_VARIABLE, nothing)
        assert EncoderSettings().preload == ()
    monkeypatch.delenv(PRELOAD_VARIABLE)
    assert EncoderSettings.model_validate({"preload": [MINE]}).preload == (mine,)


@pytest.mark.parametrize("path", ["config/demo.yaml", "config/serve.yaml"])
def test_the_variable_counts_with_each_config(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv(PRELOAD_VARIABLE, '["random/large"]')
    (application,) = read_config(ROOT / path)["applications"]
    assert "random/large" in GraphArgs.model_validate(application["args"]).encoder.preload


@pytest.mark.parametrize(
    "value",
    [
        "[",
        "demo/clip",
        '"demo/clip"',
        "{}",
        "[5]",
        "[null]",
        '[{"model": "mine"}]',
        '[{"modelProperties": {}}]',
        '[{"model": "mine", "modelProperties": "random"}]',
    ],
)
def test_a_malformed_variable_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(PRELOAD_VARIABLE, value)
    with pytest.raises(ValueError, match=r"(?i)preload"):
        EncoderSettings()


def loaded() -> list[list[str]]:
    """What each replica holds."""
    from ray import serve

    encoders = serve.get_deployment_handle("Encoder", "preloaded")
    if not encoders.is_initialized:
        for_this_thread(encoders)
    return [sorted(info.name for info in one.models) for one in encoders.broadcast("loaded").results(timeout_s=30)]


def test_every_replica_has_them_before_it_takes_traffic(serve_instance: Serve) -> None:
    """`no_model` has nothing to load, and is no error."""
    try:
        serve_instance.deploy(config(1))
        client = MarqoClient(serve_instance.url + "/preloaded")
        listed = client.get("/models").json()["models"]
        assert sorted(model["model_name"] for model in listed) == ["mine", "random/small"]
        serve_instance.deploy(config(3))
        assert loaded() == [["mine", "random/small"]] * 3
    finally:
        serve_instance.deploy()
