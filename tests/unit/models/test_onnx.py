"""Exported encoders: those of a small open_clip model and of a small text model, exported here by torch itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from embedding.errors import Fault, RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.loader import estimate_bytes, load_model
from embedding.models.model import Model, normalize
from embedding.models.openclip.model import add_architectures
from embedding.models.properties import parse_properties
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from tests.support.hub_host import HubHost
from tests.support.onnx import BERT_INPUTS, Call, export
from tests.support.tiny_bert import TEXTS, WIDTH, files_of, save_bert

CPU = torch.device("cpu")
ARCHITECTURE, DIMENSIONS, SIZE, CONTEXT = "tiny-onnx", 24, 32, 16
CONFIG = {
    "embed_dim": DIMENSIONS,
    "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of open_clip and its two towers, the image tower with its data in a second file."""
    folder = tmp_path_factory.mktemp("onnx")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(CONFIG))
    add_architectures(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE, require_pretrained=False).eval()
    save_file({name: w.contiguous() for name, w in model.state_dict().items()}, folder / "model.safetensors")
    tokens, pixels = torch.zeros(2, CONTEXT, dtype=torch.long), torch.zeros(2, 3, SIZE, SIZE)
    text = Call(model, lambda batch: model.encode_text(batch))
    image = Call(model, lambda batch: model.encode_image(batch))
    export(folder / "text" / "model.onnx", text, {"input": tokens}, "output")
    export(folder / "image" / "model.onnx", image, {"input": pixels}, "output", data=True)
    export(folder / "fixed" / "model.onnx", image, {"input": pixels}, "output", dynamic=False)
    return folder


@pytest.fixture(scope="module")
def bert(root: Path) -> Path:
    """A text model and, in `graph`, its export."""
    folder = save_bert(root / "bert", pooling="cls")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ones = {name: torch.ones(2, 7, dtype=torch.long) for name in BERT_INPUTS}

    def call(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = model(input_ids=ids, attention_mask=mask, token_type_ids=types)[0]
        return hidden

    export(root / "graph" / "model.onnx", Call(model, call), ones, "last_hidden_state")
    return folder


def options(root: Path, **changes: Any) -> LoadOptions:
    complete = {"model_sources": ("path",), "path_roots": (root,), "cache_dir": root / "cache", "backend": "onnx"}
    return LoadOptions.model_validate(complete | changes)


def encoder(*sources: Path | str, inputs: tuple[str, ...] = ("input",), output: str = "output") -> dict[str, Any]:
    """As the newer generation describes a tower to Triton."""
    return {
        "name": "a-tower",
        "maxBatchSize": 8,
        "sources": [str(source) for source in sources],
        "input": [{"name": name, "dims": [-1], "dataType": "TYPE_INT64"} for name in inputs],
        "output": [{"name": output, "dims": [DIMENSIONS], "dataType": "TYPE_FP32"}],
    }


def clip_spec(root: Path, image: str = "image", **changes: Any) -> ModelSpec:
    image_files = [root / image / "model.onnx", *(root / image).glob("*.data")]
    properties = {
        "name": ARCHITECTURE,
        "dimensions": DIMENSIONS,
        "size": SIZE,
        "localpath": str(root / "model.safetensors"),
        "tritonTextEncoderProperties": encoder(root / "text" / "model.onnx"),
        "tritonImageEncoderProperties": encoder(*image_files),
    }
    return ModelSpec.from_config(ModelConfig(model_name="mine", model_properties=properties | changes))


def bert_spec(root: Path, **changes: Any) -> ModelSpec:
    graph = encoder(root / "graph" / "model.onnx", inputs=tuple(BERT_INPUTS), output="last_hidden_state")
    properties = {
        "type": "hf",
        "localpath": str(root / "bert"),
        "dimensions": WIDTH,
        "tritonTextEncoderProperties": graph,
    }
    return ModelSpec.from_config(ModelConfig(model_name="mine", model_properties=properties | changes))


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.asarray((normalize(ours) * normalize(theirs)).sum(axis=1))


def pixels(count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (count, 3, SIZE, SIZE), np.uint8)


def texts(model: Model) -> np.ndarray:
    return model.encode_texts([model.tokenize(TEXTS[:1]), model.tokenize(TEXTS[1:])])


def load_refusal(spec: ModelSpec, options: LoadOptions) -> str:
    with pytest.raises(RequestError) as caught:
        load_model(spec, CPU, options)
    assert caught.value.fault is Fault.REFUSED
    return caught.value.message


def test_open_clip_gives_torchs_vectors(root: Path) -> None:
    onnx, torchs = (load_model(clip_spec(root), CPU, options(root, backend=name)) for name in ("onnx", "torch"))
    assert type(onnx) is not type(torchs)
    assert onnx.info.image == torchs.info.image
    batches = [pixels()[:2], pixels()[2:]]
    for ours, theirs in ((onnx.encode_images(batches), torchs.encode_images(batches)), (texts(onnx), texts(torchs))):
        assert ours.dtype == np.float32
        assert cosines(ours, theirs).min() >= 0.9999
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("pooling", [{}, {"poolingMethod": "mean"}])
def test_text_models_give_torchs_vectors(root: Path, bert: Path, pooling: dict[str, str]) -> None:
    onnx, torchs = (
        load_model(bert_spec(root, **pooling), CPU, options(root, backend=name)) for name in ("onnx", "torch")
    )
    assert type(onnx) is not type(torchs)
    assert cosines(texts(onnx), texts(torchs)).min() >= 0.9999
    np.testing.assert_allclose(texts(onnx), texts(torchs), atol=1e-4)


def test_a_graph_of_a_fixed_batch_size(root: Path) -> None:
    model = load_model(clip_spec(root, image="fixed"), CPU, options(root))
    expected = load_model(clip_spec(root), CPU, options(root)).encode_images([pixels()])
    np.testing.assert_allclose(model.encode_images([pixels()]), expected, atol=1e-4)


def test_its_size_is_that_of_its_files(root: Path) -> None:
    model = load_model(clip_spec(root), CPU, options(root))
    files = [path for tower in ("text", "image") for path in (root / tower).iterdir()]
    assert len(files) == 3
    assert model.info.nbytes == sum(path.stat().st_size for path in files)
    assert estimate_bytes(clip_spec(root), CPU, options(root)) == model.info.nbytes


def test_fingerprints(root: Path, bert: Path) -> None:
    specs = [clip_spec(root), clip_spec(root, image="fixed"), bert_spec(root), bert_spec(root, poolingMethod="mean")]
    found = [load_model(spec, CPU, options(root)).fingerprint for spec in specs]
    assert len(set(found)) == 4
    assert [load_model(spec, CPU, options(root)).fingerprint for spec in specs] == found


def test_backend_and_backends_choose_the_backend(root: Path) -> None:
    """The operator, for all models that have graphs, or for one by its label or its name."""

    def kind(spec: ModelSpec, **settings: Any) -> str:
        return type(load_model(spec, CPU, options(root, **settings))).__name__

    assert kind(clip_spec(root), backend="torch", backends={"mine": "onnx"}) == "OnnxClip"
    assert kind(clip_spec(root), backend="torch", backends={ARCHITECTURE: "onnx"}) == "OnnxClip"
    assert kind(clip_spec(root), backend="onnx", backends={"mine": "torch"}) == "OpenClipModel"
    assert kind(clip_spec(root), backend="torch", backends={"other": "onnx"}) == "OpenClipModel"
    without: dict[str, Any] = {"tritonTextEncoderProperties": None, "tritonImageEncoderProperties": None}
    assert kind(clip_spec(root, **without), backend="onnx") == "OpenClipModel"
    refused = load_refusal(clip_spec(root, **without), options(root, backends={"mine": "onnx"}))
    assert "tritonTextEncoderProperties" in refused


def test_torch_does_not_look_at_the_graphs(root: Path) -> None:
    model = load_model(clip_spec(root, tritonTextEncoderProperties=5), CPU, options(root, backend="torch"))
    assert type(model).__name__ == "OpenClipModel"


def test_a_hub_model_brings_tokenizer_and_preprocessing_but_not_its_weights(
    root: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs from URLs, everything else from the repositories that the properties name."""
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "interpolation": "bilinear"}
    config = json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocessing | {"resize_mode": "squash"}})
    weights = (root / "model.safetensors").read_bytes()
    towers = {f"{tower}/{p.name}": p.read_bytes() for tower in ("text", "image") for p in (root / tower).iterdir()}
    clip = {"open_clip_config.json": config.encode(), "open_clip_model.safetensors": weights}
    graph = {"graph/model.onnx": (root / "graph" / "model.onnx").read_bytes()}
    for variable in ("HF_HUB_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    with HubHost({"me/clip": clip | towers, "me/bert": files_of(bert) | graph}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        settings: dict[str, Any] = {"model_sources": ("hub", "url"), "path_roots": (), "cache_dir": tmp_path}
        settings["allowed_networks"] = "127.0.0.0/8"
        both = [options(root, **settings, backend=name) for name in ("onnx", "torch")]
        base = f"{hub.url}/me/clip/resolve/main"
        image = [f"{base}/image/model.onnx", f"{base}/image/model.onnx.data"]
        of_clip = clip_spec(
            root,
            name="hf-hub:me/clip",
            localpath=None,
            tritonTextEncoderProperties=encoder(f"{base}/text/model.onnx"),
            tritonImageEncoderProperties=encoder(*image),
        )
        url = f"{hub.url}/me/bert/resolve/main/graph/model.onnx"
        graph_of = encoder(url, inputs=tuple(BERT_INPUTS), output="last_hidden_state")
        of_bert = bert_spec(root, name="me/bert", localpath=None, tritonTextEncoderProperties=graph_of)
        for spec, checkpoint in ((of_clip, "open_clip_model.safetensors"), (of_bert, "model.safetensors")):
            onnx = load_model(spec, CPU, both[0])
            assert hub.transfers(checkpoint) == 0
            torchs = load_model(spec, CPU, both[1])
            assert hub.transfers(checkpoint) == 1
            assert onnx.info.image == torchs.info.image
            assert cosines(texts(onnx), texts(torchs)).min() >= 0.9999
            if spec is of_clip:
                assert cosines(onnx.encode_images([pixels()]), torchs.encode_images([pixels()])).min() >= 0.9999


# --- What does not load says why ---


def test_the_width_is_checked(root: Path, bert: Path) -> None:
    for spec in (clip_spec(root, dimensions=512), bert_spec(root, dimensions=512)):
        message = load_refusal(spec, options(root))
        assert "dimensions is 512" in message
        assert str(DIMENSIONS) in message


def test_a_file_that_is_no_graph(root: Path) -> None:
    (root / "broken").mkdir(exist_ok=True)
    for content in (b"", b"junk" * 100, (root / "text" / "model.onnx").read_bytes()[:5000]):
        (root / "broken" / "model.onnx").write_bytes(content)
        broken = encoder(root / "broken" / "model.onnx")
        message = load_refusal(clip_spec(root, tritonTextEncoderProperties=broken), options(root))
        assert message.startswith("Unable to load model 'mine': ")
        assert "model.onnx" in message
        assert (root / "broken" / "model.onnx").exists(), "an operator's file is not ours to delete"


def test_a_downloaded_file_that_is_no_graph(root: Path, tmp_path: Path) -> None:
    """It is deleted: the next request fetches it anew."""
    with HubHost({"me/bad": {"model.onnx": b"junk" * 500}}) as hub:
        url = f"{hub.url}/me/bad/resolve/main/model.onnx"
        settings: dict[str, Any] = {"model_sources": ("url", "path"), "allowed_networks": "127.0.0.0/8"}
        for attempt in (1, 2):
            spec = clip_spec(root, tritonTextEncoderProperties=encoder(url))
            assert "cannot use model.onnx" in load_refusal(spec, options(root, cache_dir=tmp_path, **settings))
            assert hub.transfers("model.onnx") == attempt
            assert not list(tmp_path.rglob("model.onnx"))


def test_names_that_are_not_in_the_graph(root: Path) -> None:
    path = root / "text" / "model.onnx"
    for member, expected in (
        (encoder(path, output="embedding"), "no output 'embedding'"),
        (encoder(path, inputs=("tokens",)), "an input 'input'"),
    ):
        assert expected in load_refusal(clip_spec(root, tritonTextEncoderProperties=member), options(root))


BAD: list[tuple[str, Any]] = [
    ("tritonTextEncoderProperties", 5),
    ("sources", {"sources": []}),
    ("sources", {"sources": [f"a/model.onnx.data_{i}" for i in range(6)]}),
    ("sources", {"sources": ["a/graph.onnx"]}),
    ("sources", {"sources": ["a/model.onnx.data"]}),
    ("sources", {"sources": ["a/model.onnx", "b/model.onnx"]}),
    ("maxBatchSize", {"maxBatchSize": 129}),
    ("maxBatchSize", {"maxBatchSize": 0}),
    ("input", {"input": []}),
    ("input", {"input": [{"name": str(i)} for i in range(4)]}),
    ("output", {"output": [{"name": "a"}, {"name": "b"}]}),
    ("name", {"name": None}),
]


@pytest.mark.parametrize(("field", "change"), BAD)
def test_malformed_members_are_named(root: Path, field: str, change: Any) -> None:
    member = encoder(root / "text" / "model.onnx") | change if isinstance(change, dict) else change
    message = load_refusal(clip_spec(root, tritonTextEncoderProperties=member), options(root))
    assert message.startswith("Invalid model properties: tritonTextEncoderProperties")
    assert field in message


def test_sources_may_carry_a_query() -> None:
    properties = {"name": "x", "dimensions": 4, "tritonTextEncoderProperties": encoder("https://h/model.onnx?sig=a/b")}
    parsed = parse_properties(properties)
    assert parsed.triton_encoder("text").max_batch_size == 8  # type: ignore[union-attr]


def test_sources_obey_model_sources(root: Path, tmp_path: Path) -> None:
    member = encoder("http://127.0.0.1:1/model.onnx")
    assert "model_sources" in load_refusal(clip_spec(root, tritonTextEncoderProperties=member), options(root))
    assert "path_roots" in load_refusal(clip_spec(root), options(root, path_roots=(tmp_path,)))
