"""Text models of transformers, small ones made here: protocol sheet, section 7.3. Against transformers itself."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_host import HubHost
from image_host import ImageHost
from safetensors.torch import load_file, save_file
from tiny_bert import TEXTS, VOCABULARY, WIDTH, archived, files_of, reference, save_bert, save_tokenizer

from embedding.errors import Fault, RequestError
from embedding.models.loader import estimate_bytes, load_model
from embedding.models.model import Model
from embedding.models.options import LoadOptions
from embedding.models.properties import HfProperties, parse_properties
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a pooling file."""
    return save_bert(tmp_path_factory.mktemp("bert") / "plain")


def spec(auth: dict[str, Any] | None = None, **properties: Any) -> ModelSpec:
    complete = {"type": "hf", "dimensions": WIDTH} | properties
    config = {"model_name": "mine", "model_properties": complete, "model_auth": auth}
    return ModelSpec.from_config(ModelConfig.model_validate(config))


def load(folder: Path, options: LoadOptions | None = None, **properties: Any) -> Model:
    return load_model(spec(localpath=str(folder), **properties), CPU, options)


def refusal(options: LoadOptions | None = None, **properties: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_model(spec(**properties), CPU, options)
    assert caught.value.fault is Fault.REFUSED
    return caught.value.message


def vectors(model: Model, texts: list[str] = TEXTS) -> np.ndarray:
    """As several requests that share one forward pass."""
    rows = model.encode_texts([model.tokenize(texts[:1]), model.tokenize(texts[1:])])
    assert rows.dtype == np.float32
    assert rows.shape == (len(texts), WIDTH)
    return rows


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# --- Vectors ---


@pytest.mark.parametrize("spelling", ["poolingMethod", "pooling_method"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_properties_pooling(bert: Path, pooling: str, spelling: str) -> None:
    same(vectors(load(bert, **{spelling: pooling})), reference(bert, TEXTS, pooling))


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
    properties = {} if asked is None else {"poolingMethod": asked}
    same(vectors(load(folder, **properties)), reference(folder, TEXTS, expected))


def test_neighbours_in_a_batch_change_nothing(bert: Path) -> None:
    model = load(bert)
    alone = np.concatenate([model.encode_texts([model.tokenize([text])]) for text in TEXTS])
    together = model.encode_texts([model.tokenize([text]) for text in reversed(TEXTS)])[::-1]
    same(alone, together)


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
def test_long_texts_are_cut_off(bert: Path, properties: dict[str, int], limit: int) -> None:
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
    assert estimate_bytes(wanted, CPU) == model.info.nbytes


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


# --- Where it comes from ---


@pytest.mark.parametrize(("name", "under"), [
    ("model.zip", ""),
    ("model.zip", "my-model/"),
    ("model.tar", ""),
    ("model.tar.gz", "my-model/"),
])  # fmt: skip
def test_archives(tmp_path: Path, bert: Path, name: str, under: str) -> None:
    options = LoadOptions(model_sources=("path",), path_roots=(tmp_path,), cache_dir=tmp_path / "cache")
    archive = archived(bert, tmp_path / name, under)
    same(vectors(load(archive, options)), reference(bert, TEXTS, "mean"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    """A hub with sentence-transformers repositories: with all kinds of weights, with old ones, and a gated one."""
    folder = save_bert(tmp_path / "hub-model", pooling="cls")
    files = files_of(folder) | {"onnx/model.onnx": b"o" * 5000, "pytorch_model.bin": b"x" * 5000, "tf_model.h5": b"h"}
    weights = tmp_path / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), weights)
    old = {name: content for name, content in files_of(folder).items() if name != "model.safetensors"}
    old["pytorch_model.bin"] = weights.read_bytes()
    packed = {"model.zip": archived(folder, tmp_path / "model.zip").read_bytes(), "model.pt": b"x"}
    repositories = {
        "st/cls": files,
        "st/old": old,
        "st/gated": files,
        "st/packed": packed,
        "st/empty": {"a.json": b"{}"},
    }
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with HubHost(repositories, gated={"st/gated": "hf_secret"}) as host:
        monkeypatch.setenv("HF_ENDPOINT", host.url)
        yield host


@pytest.fixture
def hub_options(tmp_path: Path) -> LoadOptions:
    return LoadOptions(
        model_sources=("hub", "url"), cache_dir=tmp_path / "cache", allowed_networks="127.0.0.0/8", backend="torch"
    )


@pytest.fixture
def expected(tmp_path: Path, hub: HubHost) -> np.ndarray:
    return reference(tmp_path / "hub-model", TEXTS, "cls")


@pytest.mark.parametrize("properties", [
    {"name": "st/cls"},
    {"name": "st/old"},
    {"modelLocation": {"hf": {"repoId": "st/cls"}}},
    {"model_location": {"hf": {"repo_id": "st/packed", "filename": "model.zip"}}},
    {"name": "st/cls", "modelLocation": {"hf": {"repoId": "st/empty"}}},
    {"name": "st/cls", "url": "http://127.0.0.1:1/never-asked.zip"},
])  # fmt: skip
def test_repositories(hub: HubHost, hub_options: LoadOptions, expected: np.ndarray, properties: dict[str, Any]) -> None:
    same(vectors(load_model(spec(**properties), CPU, hub_options)), expected)
    assert hub.transfers("onnx/model.onnx") == hub.transfers("tf_model.h5") == 0
    assert "st/old" in properties.values() or hub.transfers("pytorch_model.bin") == 0


def test_an_archive_behind_a_url(hub: HubHost, hub_options: LoadOptions, expected: np.ndarray) -> None:
    url = f"{hub.url}/st/packed/resolve/main/model.zip"
    same(vectors(load_model(spec(url=url), CPU, hub_options)), expected)


def test_a_gated_repository(hub: HubHost, hub_options: LoadOptions, expected: np.ndarray) -> None:
    assert "st/gated" in refusal(hub_options, name="st/gated")
    place = {"hf": {"repoId": "st/gated"}, "authRequired": True}
    assert "modelAuth" in refusal(hub_options, modelLocation=place)
    auth = {"hf": {"token": "hf_secret"}}
    same(vectors(load_model(spec(auth, name="st/gated"), CPU, hub_options)), expected)
    same(vectors(load_model(spec(auth, modelLocation=place), CPU, hub_options)), expected)


def test_a_repository_without_a_model(hub: HubHost, hub_options: LoadOptions) -> None:
    assert "no weights" in refusal(hub_options, name="st/empty")


def test_a_source_that_the_operator_does_not_allow(tmp_path: Path, bert: Path) -> None:
    options = LoadOptions(model_sources=("registry",), cache_dir=tmp_path)
    for properties in ({"name": "st/cls"}, {"localpath": str(bert)}, {"url": "http://example.com/a.zip"}):
        assert "model_sources" in refusal(options, **properties)
        with pytest.raises(RequestError, match="model_sources"):
            estimate_bytes(spec(**properties), CPU, options)


# --- Code of a repository ---

CODE = """
import torch
from transformers import BertModel

class Doubled(BertModel):
    def forward(self, **inputs):
        return (2 * super().forward(**inputs)[0],)
"""


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = save_bert(tmp_path / "with-code")
    (folder / "doubled.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "doubled.Doubled"}}
    (folder / "config.json").write_text(json.dumps(config))
    for width in (8, 16):
        place = folder / f"2_Dense_{width}"
        place.mkdir()
        torch.manual_seed(width)
        weights = {"linear.weight": torch.randn(width, WIDTH), "linear.bias": torch.randn(width)}
        torch.save(weights, place / "pytorch_model.bin")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def trusting(tmp_path: Path) -> LoadOptions:
    return LoadOptions(
        model_sources=("path",), path_roots=(tmp_path,), cache_dir=tmp_path / "cache", trust_remote_code=True
    )


def test_code_runs_if_asked_for_and_allowed(tmp_path: Path, with_code: Path) -> None:
    plain = reference(with_code, TEXTS, "mean", trust_remote_code=False)
    same(vectors(load(with_code, trusting(tmp_path), trustRemoteCode=True)), 2 * plain)
    same(vectors(load(with_code, trusting(tmp_path))), plain)
    same(vectors(load(with_code)), plain)
    assert "trust_remote_code" in refusal(localpath=str(with_code), trustRemoteCode=True)


def test_stella(tmp_path: Path, with_code: Path) -> None:
    options, common = trusting(tmp_path), {"type": "hf_stella", "trustRemoteCode": True}
    for width in (8, 16):
        model = load(with_code, options, dimensions=width, **common)
        dense = torch.load(with_code / f"2_Dense_{width}" / "pytorch_model.bin", weights_only=True)
        plain = 2 * reference(with_code, TEXTS, "mean", trust_remote_code=False)
        same(
            model.encode_texts([model.tokenize(TEXTS)]),
            plain @ dense["linear.weight"].numpy().T + dense["linear.bias"].numpy(),
        )
    assert "2_Dense_24" in refusal(options, localpath=str(with_code), **common)
    assert "trustRemoteCode" in refusal(options, localpath=str(with_code), type="hf_stella")
    assert "trust_remote_code" in refusal(localpath=str(with_code), **common)


# --- What does not load says why ---


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
