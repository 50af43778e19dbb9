"""What a repository's `1_Pooling/config.json` says of pooling: it is served, or refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedding.errors import Fault, RequestError
from embedding.models.hf.pooling import pooling_mode
from tests.support.hf import load, refusal, same, vectors
from tests.support.tiny_bert import TEXTS, reference, save_bert

FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def config(*modes: str, **more: Any) -> dict[str, Any]:
    """As sentence-transformers writes it: every flag, whether true or false."""
    return {"word_embedding_dimension": 24, **{f"pooling_mode_{flag}": flag in modes for flag in FLAGS}, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "model", pooling="mean")


def write(folder: Path, given: dict[str, Any]) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(given))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config("cls_token"), "cls"),
        (config("mean_tokens"), "mean"),
        (config("mean_tokens", include_prompt=False), "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_cls_token": False}, "mean"),
        ({}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_modes_that_are_served(folder: Path, given: dict[str, Any], expected: str) -> None:
    write(folder, given)
    same(vectors(load(folder)), reference(folder, TEXTS, expected))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (config("max_tokens"), "by max,"),
        (config("lasttoken"), "by lasttoken,"),
        (config("weightedmean_tokens"), "by weightedmean,"),
        (config("mean_sqrt_len_tokens"), "by mean_sqrt_len,"),
        (config("mean_tokens", "max_tokens"), "by max and mean,"),
        (config("cls_token", "mean_tokens"), "by cls and mean,"),
        ({"pooling_mode_cls_token": True, "pooling_mode_lasttoken": True}, "by cls and lasttoken,"),
        ({"pooling_mode_of_tomorrow": True}, "by of_tomorrow,"),
        ({"pooling_mode": "lasttoken"}, "by lasttoken,"),
        ({"pooling_mode": ["mean", "max"]}, "by max and mean,"),
        ({"pooling_mode": [["mean"]]}, "which is not served"),
        (config(), "none of the modes"),
        ({"pooling_mode_lasttoken": "yes"}, "pooling_mode_lasttoken is neither true nor false"),
    ],
)
def test_modes_that_are_not_served_are_named(folder: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        pooling_mode(given)
    assert caught.value.fault is Fault.REFUSED
    write(folder, given)
    message = refusal(localpath=str(folder))
    assert message == f"Unable to load model 'mine': {caught.value.message.removeprefix('Unable to load model: ')}"
    assert said in message
    if "neither" not in said:
        assert "poolingMethod" in message


@pytest.mark.parametrize("asked", ["mean", "cls"])
def test_the_properties_say_what_to_take_in_its_place(folder: Path, asked: str) -> None:
    write(folder, config("lasttoken"))
    same(vectors(load(folder, poolingMethod=asked)), reference(folder, TEXTS, asked))
