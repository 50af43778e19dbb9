"""Which models are preloaded: those of the config and those of Marqo's variable (docs/protocol.md, section 8.4)."""

import json

import pytest

from benchmarks.lib.places import ROOT
from deployments.encoder.settings import PRELOAD_VARIABLE, EncoderSettings, PreloadedModel
from graph import GraphArgs
from operations.config_file import read_config
from tests.support.serve import MINE


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


@pytest.mark.parametrize("path", ["config/demo.yaml", "config/edge.yaml", "config/serve.yaml", "config/cluster.yaml"])
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
