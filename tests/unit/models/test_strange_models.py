"""Models of strangers that are judged before they are built, and texts that are bounded whatever a request says."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.nn.modules.module import register_module_forward_hook

from embedding.models.files.options import LoadOptions
from embedding.models.hf import attention
from embedding.models.hf import model as hf
from embedding.models.loader import estimate_bytes, load_model
from tests.support.hf import CPU, load, refusal, same, spec, vectors
from tests.support.hostile_repositories import CONFIGS, DROPPED, Files, changed, write
from tests.support.models import ANY_LOCAL_FILE
from tests.support.tiny_bert import TEXTS, VOCABULARY, files_of, reference, save_bert, save_tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files_of(save_bert(tmp_path_factory.mktemp("good") / "bert"))


@pytest.mark.parametrize("case", ["layers", "many layers", "vocabulary", "width", "wide layers", "positions"])
def test_sizes_that_the_weights_cannot_have(tmp_path: Path, files: Files, case: str) -> None:
    """The first of these held the lock that all buildings share for 21 s."""
    folder = write(changed(files, "config.json", **CONFIGS[case]), tmp_path / "x")
    locked = LockWatch()
    before, start = psutil.Process().memory_info().rss, time.process_time()
    with locked:
        message = refusal(localpath=str(folder))
    assert "config.json" in message
    assert time.process_time() - start < 3
    assert locked.longest_s < 3
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


class LockWatch:
    """How long another thread waits at most for the lock under which models are built."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.longest_s = 0.0

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.005):
            start = time.monotonic()
            with hf._building:
                self.longest_s = max(self.longest_s, time.monotonic() - start)


def test_what_reaches_for_code_changes_nothing(tmp_path: Path, files: Files) -> None:
    folder = write(changed(files, "config.json", **DROPPED), tmp_path / "x")
    same(vectors(load(folder)), reference(write(files, tmp_path / "good"), TEXTS, "mean"))


def test_an_adapter_beside_a_model_is_not_looked_at(tmp_path: Path, files: Files) -> None:
    adapter = json.dumps({"base_model_name_or_path": "stranger/other", "peft_type": "LORA"}).encode()
    folder = write(files | {"adapter_config.json": adapter}, tmp_path / "x")
    same(vectors(load(folder)), reference(write(files, tmp_path / "good"), TEXTS, "mean"))


def test_weights_in_several_files(tmp_path: Path, files: Files) -> None:
    from safetensors.torch import load as parse
    from safetensors.torch import save

    weights = parse(files["model.safetensors"])
    halves = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(weights.items())[i::2]) for i in range(2)}
    places = {name: place for place, half in halves.items() for name in half}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    parts = {name: save(half, {"format": "pt"}) for name, half in halves.items()}
    split = {name: content for name, content in files.items() if name != "model.safetensors"} | parts
    split["model.safetensors.index.json"] = json.dumps(index).encode()
    expected = reference(write(files, tmp_path / "good"), TEXTS, "mean")
    same(vectors(load(write(split, tmp_path / "split"))), expected)
    index["weight_map"] = {name: f"../good/{place}" for name, place in places.items()}
    split["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "not one of the repository's weights" in refusal(localpath=str(write(split, tmp_path / "outside")))


@pytest.fixture
def rotary(tmp_path: Path) -> Path:
    """A model whose positions have no table."""
    from transformers import ModernBertConfig, ModernBertModel

    members: dict[str, Any] = {
        "vocab_size": len(VOCABULARY), "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 300, "pad_token_id": 0, "bos_token_id": 2,
        "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 1,
    }  # fmt: skip
    config = ModernBertConfig(**members)
    ModernBertModel(config).save_pretrained(tmp_path / "rotary")
    save_tokenizer(tmp_path / "rotary", VOCABULARY)
    return tmp_path / "rotary"


@pytest.mark.parametrize(("tokens", "most", "expected"), [(10**9, 8192, 300), (10**9, 50, 50), (20, 50, 20)])
def test_tokens_of_models_with_rotary_positions(rotary: Path, tokens: int, most: int, expected: int) -> None:
    options = LoadOptions(model_sources=("path",), path_roots=(rotary,), max_tokens=most)
    model = load(rotary, options, tokens=tokens)
    assert len(model.tokenize(["word " * 1000])[0]["input_ids"]) == expected


def test_attention_is_bounded(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts of one batch are computed in several passes, with the same vectors."""
    model = load(write(files, tmp_path / "x"))
    expected = vectors(model)
    passes: list[str] = []
    hook = register_module_forward_hook(lambda module, *_: passes.append(type(module).__name__))
    try:
        monkeypatch.setattr(attention, "MAX_BYTES", 4 * 2 * 128 * 128)
        same(vectors(model), expected)
    finally:
        hook.remove()
    assert passes.count("BertModel") == 2


def test_a_models_own_size_is_unchanged(tmp_path: Path, files: Files) -> None:
    wanted = spec(localpath=str(write(files, tmp_path / "x")))
    assert estimate_bytes(wanted, CPU, ANY_LOCAL_FILE) == load_model(wanted, CPU, ANY_LOCAL_FILE).info.nbytes
