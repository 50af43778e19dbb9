"""Text models of transformers that do not load say why: docs/protocol.md, section 7.3."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.lib.image_host import ImageHost
from embedding.errors import RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.loader import load_model
from embedding.models.properties import HfProperties, parse_properties
from tests.support.hf import CPU, bert, hub, hub_options, load, refusal, same, spec, vectors  # noqa: F401
from tests.support.hub_host import HubHost
from tests.support.tiny_bert import TEXTS, VOCABULARY, WIDTH, archived, reference, save_tokenizer


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, bert: Path) -> None:
    folder = tmp_path / "incomplete"
    shutil.copytree(bert, folder)
    weights = load_file(bert / "model.safetensors")
    lost = "encoder.layer.1.output.dense.weight"
    kept = {name: weight for name, weight in weights.items() if name != lost}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert lost in refusal(localpath=str(folder))
    save_file({n: w for n, w in weights.items() if "pooler" not in n}, folder / "model.safetensors", {"format": "pt"})
    same(vectors(load(folder)), reference(bert, TEXTS, "mean"))


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_files(tmp_path: Path, bert: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(bert, folder)
    (folder / damage).write_bytes((bert / damage).read_bytes()[:100])
    message = refusal(localpath=str(folder))
    assert message.startswith("Unable to load model 'mine': ")
    assert len(message) < 1000


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


def test_a_changed_bit_in_a_cached_file(tmp_path: Path, hub: HubHost, hub_options: LoadOptions) -> None:
    """Deleted, since it was downloaded, and downloaded anew by the next request."""
    load_model(spec(name="st/old"), CPU, hub_options)
    (cached,) = (tmp_path / "cache").rglob("pytorch_model.bin")
    cached.resolve().write_bytes(flipped(cached.read_bytes()))
    message = refusal(hub_options, name="st/old")
    assert "'pytorch_model.bin' is corrupt: the checksum of its part" in message
    assert "deleted" in message
    load_model(spec(name="st/old"), CPU, hub_options)
    assert hub.transfers("pytorch_model.bin") == 2


@pytest.mark.parametrize("damage", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_in_an_archive(tmp_path: Path, bert: Path, damage: str) -> None:
    """A tar file has no checksums of its own: what is in it tells, and the archive goes as a whole."""
    folder = tmp_path / "damaged"
    shutil.copytree(bert, folder)
    weights = load_file(folder / "model.safetensors")
    if damage == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / damage)
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(flipped(content) if damage == "pytorch_model.bin" else content[:-5])
    packed = archived(folder, tmp_path / "model.tar").read_bytes()
    options = LoadOptions(model_sources=("url",), cache_dir=tmp_path / "cache", allowed_networks="127.0.0.0/8")
    with ImageHost({"model.tar": packed}) as host:
        for attempt in (1, 2):
            assert "the archive 'model.tar' is corrupt" in refusal(options, url=host.url("/ok/model.tar"))
            assert len(host.requests) == attempt
            assert not list((tmp_path / "cache").rglob("model.*"))


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("x")
    assert "no config.json" in refusal(localpath=str(tmp_path))


def test_a_tokenizer_that_knows_more_than_the_model(tmp_path: Path, bert: Path) -> None:
    """On a GPU a token without an embedding would end the whole process."""
    folder = tmp_path / "wordy"
    shutil.copytree(bert, folder)
    save_tokenizer(folder, [*VOCABULARY, "zebra"])
    model = load(folder)
    model.encode_texts([model.tokenize(["a red star"])])
    with pytest.raises(RequestError, match=f"token {len(VOCABULARY)}.*knows only {len(VOCABULARY)}"):
        model.encode_texts([model.tokenize(["a zebra"])])


def test_the_wrong_dimensions(bert: Path) -> None:
    message = refusal(localpath=str(bert), dimensions=512)
    assert "dimensions is 512" in message
    assert str(WIDTH) in message


BAD: list[tuple[str, dict[str, Any]]] = [
    ("name", {}),
    ("name", {"name": ""}),
    ("name", {"name": 5}),
    ("dimensions", {"name": "a/b", "dimensions": 0}),
    ("tokens", {"name": "a/b", "tokens": 0}),
    ("poolingMethod", {"name": "a/b", "poolingMethod": "max"}),
    ("trustRemoteCode", {"name": "a/b", "trustRemoteCode": "perhaps"}),
    ("modelLocation", {"url": "http://example.com/a.zip", "modelLocation": {"hf": {"repoId": "a/b"}}}),
    ("modelLocation", {"modelLocation": {}}),
    ("repoId", {"modelLocation": {"hf": {}}}),
    ("Bucket", {"modelLocation": {"s3": {"Key": "a.zip"}}}),
    (".bin", {"url": "http://example.com/model.bin?x=1"}),
    (".pt", {"modelLocation": {"s3": {"Bucket": "b", "Key": "a/model.pt"}}}),
    (".pt", {"modelLocation": {"hf": {"repoId": "a/b", "filename": "model.pt"}}}),
]


@pytest.mark.parametrize(("field", "properties"), BAD)
def test_bad_properties_name_their_field(field: str, properties: dict[str, Any]) -> None:
    message = refusal(**properties)
    assert message.startswith("Invalid model properties")
    assert field in message


def test_both_spellings() -> None:
    for camel, snake in (("modelLocation", "model_location"), ("trustRemoteCode", "trust_remote_code")):
        value: Any = True if camel == "trustRemoteCode" else {"hf": {"repo_id": "a/b", "filename": "c.zip"}}
        parsed = [parse_properties({"type": "hf", "name": "x", "dimensions": 4, key: value}) for key in (camel, snake)]
        assert parsed[0] == parsed[1] != parse_properties({"type": "hf", "name": "x", "dimensions": 4})
    located = parse_properties({"type": "hf", "dimensions": 4, "modelLocation": {"hf": {"repo_id": "a/b"}}})
    assert isinstance(located, HfProperties)
    assert located.location == {"hf": {"repoId": "a/b"}, "authRequired": False}
