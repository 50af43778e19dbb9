"""Text models of transformers, small ones made here: docs/protocol.md, section 7.3. Against transformers itself."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from embedding.models.cpu.capabilities import has_bf16
from embedding.models.loader import estimate_bytes
from tests.support.hf import CPU, bert, load, same, spec, vectors  # noqa: F401
from tests.support.models import ANY_LOCAL_FILE
from tests.support.tiny_bert import TEXTS, archived, reference, save_bert


@pytest.mark.parametrize("spelling", ["poolingMethod", "pooling_method"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_properties_pooling(bert: Path, pooling: str, spelling: str) -> None:
    properties: dict[str, Any] = {spelling: pooling}
    same(vectors(load(bert, **properties)), reference(bert, TEXTS, pooling))


def test_mean_and_cls_differ(bert: Path) -> None:
    assert not np.allclose(reference(bert, TEXTS, "mean"), reference(bert, TEXTS, "cls"), atol=0.1)


@pytest.mark.parametrize(("own", "asked", "expected"), [
    (None, None, "mean"),
    ("mean", None, "mean"),
    ("cls", None, "cls"),
    ("cls", "mean", "mean"),
])  # fmt: skip
def test_the_repositorys_pooling(tmp_path: Path, own: str | None, asked: str | None, expected: str) -> None:
    folder = save_bert(tmp_path / "model", pooling=own)
    properties: dict[str, Any] = {} if asked is None else {"poolingMethod": asked}
    same(vectors(load(folder, **properties)), reference(folder, TEXTS, expected))


def test_neighbours_in_a_batch_change_nothing(bert: Path) -> None:
    model = load(bert)
    alone = np.concatenate([model.encode_texts([model.tokenize([text])]) for text in TEXTS])
    together = model.encode_texts([model.tokenize([text]) for text in reversed(TEXTS)])[::-1]
    same(alone, together)


def test_bf16_on_a_cpu_that_has_it(bert: Path) -> None:
    plain, chosen = load(bert), load(bert, ANY_LOCAL_FILE.model_copy(update={"cpu_precision": "bf16"}))
    assert (chosen.fingerprint == plain.fingerprint) == (not has_bf16())
    assert (chosen.info.nbytes < plain.info.nbytes) == has_bf16()
    np.testing.assert_allclose(vectors(chosen), vectors(plain), atol=0.05 * np.abs(vectors(plain)).max())


def test_a_tokenizer_that_pads_on_the_left(tmp_path: Path, bert: Path) -> None:
    folder = tmp_path / "left"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = load(folder)
    tokens = [model.tokenize(["red"]), model.tokenize(["the big blue star"])]
    merged = model.tokenize.merge(tokens)  # type: ignore[attr-defined]
    assert merged["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1], [1] * 6]
    assert merged["input_ids"][0, :3].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("properties", "limit"), [({}, 128), ({"tokens": 5}, 5), ({"tokens": 300}, 300)])
def test_long_texts_are_cut_off(bert: Path, properties: dict[str, Any], limit: int) -> None:
    model = load(bert, **properties)
    assert len(model.tokenize(TEXTS)[-1]["input_ids"]) == limit
    same(vectors(model), reference(bert, TEXTS, "mean", tokens=limit))


def test_more_tokens_than_positions(tmp_path: Path) -> None:
    """Without the limit the first long text would fail, on a GPU with the whole process."""
    folder = save_bert(tmp_path / "short", positions=16)
    same(vectors(load(folder, tokens=512)), reference(folder, TEXTS, "mean", tokens=16))


def test_half_precision_files_are_computed_in_single_precision(tmp_path: Path, bert: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(bert, folder)
    weights = load_file(bert / "model.safetensors")
    save_file({name: w.half() for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((bert / "config.json").read_text()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    model = load(folder)
    same(vectors(model), reference(folder, TEXTS, "mean"))
    assert model.info.nbytes == load(bert).info.nbytes


def test_it_is_a_text_model_and_says_how_large(bert: Path) -> None:
    model = load(bert)
    wanted = spec(localpath=str(bert))
    assert model.info.image is None
    assert model.info.key == wanted.key
    assert model.info.nbytes >= sum(w.nbytes for w in load_file(bert / "model.safetensors").values())
    assert estimate_bytes(wanted, CPU, ANY_LOCAL_FILE) == model.info.nbytes


def test_fingerprints(tmp_path: Path, bert: Path) -> None:
    ours = load(bert).fingerprint
    assert load(archived(bert, tmp_path / "same.zip")).fingerprint == ours
    others = [load(bert, tokens=5), load(bert, poolingMethod="cls"), load(save_bert(tmp_path / "other", seed=1))]
    assert len({ours, *(model.fingerprint for model in others)}) == 4


def test_many_threads_may_tokenize(bert: Path) -> None:
    model = load(bert)
    expected = model.tokenize(TEXTS)
    start = threading.Barrier(8)

    def tokenize(_: int) -> bool:
        start.wait()
        return all(model.tokenize(TEXTS) == expected for _ in range(50))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(tokenize, range(8)))
