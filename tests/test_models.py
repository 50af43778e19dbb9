"""Loading models, with tiny checkpoints made here: protocol sheet, sections 7.1, 7.4 and 7.5. No hub is reached."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from pictures import jpeg, photo
from PIL import Image
from safetensors.torch import save_file

from embedding.errors import Fault, RequestError
from embedding.image import preprocess
from embedding.models.loader import load_model
from embedding.models.model import Model, normalize
from embedding.models.openclip import PRESETS, add_architectures
from embedding.models.properties import SERVED_TYPES, parse_properties
from embedding.models.random import random_vectors
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig

ARCHITECTURE, OTHER = "tiny-B-16", "tiny-other"
DIMENSIONS, SIZE = 24, 32
CPU = torch.device("cpu")
TEXTS = ["a red circle", "", "ein Bär – 図", "word " * 500]


def architecture(width: int) -> dict[str, Any]:
    return {
        "embed_dim": DIMENSIONS,
        "vision_cfg": {"image_size": SIZE, "patch_size": 16, "width": width, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints are; its architectures are known to open_clip, and to it alone."""
    folder = tmp_path_factory.mktemp("models")
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(architecture(32)))
    (folder / f"{OTHER}.json").write_text(json.dumps(architecture(48)))
    add_architectures(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> torch.nn.Module:
    """open_clip's own model, untrained; its weights are in the checkpoints."""
    torch.manual_seed(0)
    return open_clip.create_model(ARCHITECTURE, require_pretrained=False).eval()


Save = Callable[[dict[str, torch.Tensor], Path], None]
FORMATS: dict[str, Save] = {
    "plain.pt": torch.save,
    "plain.safetensors": save_file,
    "nested.pth": lambda weights, path: torch.save({"epoch": 1, "state_dict": weights}, path),
    "parallel.bin": lambda weights, path: torch.save({f"module.{name}": w for name, w in weights.items()}, path),
}


@pytest.fixture(scope="module")
def checkpoint(folder: Path, reference: torch.nn.Module) -> Path:
    """All formats are beside it."""
    weights = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    for name, save in FORMATS.items():
        save(weights, folder / name)
    return folder / "plain.safetensors"


def spec(**properties: Any) -> ModelSpec:
    """A request's model under the label `mine`."""
    complete = {"name": ARCHITECTURE, "dimensions": DIMENSIONS, "type": "open_clip", "size": SIZE} | properties
    return ModelSpec.from_config(ModelConfig(model_name="mine", model_properties=complete))


def load(checkpoint: Path, **properties: Any) -> Model:
    return load_model(spec(localpath=str(checkpoint), **properties), CPU)


def refusal(**properties: Any) -> str:
    with pytest.raises(RequestError) as caught:
        load_model(spec(**properties), CPU)
    assert caught.value.fault is Fault.REFUSED
    assert len(caught.value.message) < 2000
    return caught.value.message


def cosines(ours: np.ndarray, theirs: torch.Tensor) -> np.ndarray:
    return (normalize(ours) * normalize(theirs.numpy())).sum(axis=1)


# --- What loads gives open_clip's vectors ---


@pytest.mark.parametrize("name", FORMATS)
def test_texts_are_open_clips(reference: torch.nn.Module, checkpoint: Path, name: str) -> None:
    model = load(checkpoint.parent / name)
    ours = model.encode_texts([model.tokenize(TEXTS[:1]), model.tokenize(TEXTS[1:])])
    with torch.inference_mode():
        theirs = reference.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS))
    assert ours.dtype == np.float32
    assert ours.shape == (len(TEXTS), DIMENSIONS)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_pictures_are_open_clips_with_every_preset(reference: torch.nn.Module, checkpoint: Path, preset: str) -> None:
    files = [jpeg(photo(seed, 90 + seed, 60)) for seed in range(3)]
    model = load(checkpoint, imagePreprocessor=preset)
    image = model.info.image
    assert image is not None
    prepared = [preprocess(data, image, "x")[np.newaxis] for data in files]
    ours = model.encode_images([prepared[0], np.concatenate(prepared[1:])])
    # The table of section 7.1, written once more.
    mean, std, interpolation, resize = {
        "OpenCLIP": (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, "bicubic", "shortest"),
        "OpenAI": (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, "bicubic", "shortest"),
        "SigLIP": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash"),
        "CLIPA": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "squash"),
    }[preset]
    config = PreprocessCfg(size=SIZE, mean=mean, std=std, interpolation=interpolation, resize_mode=resize)
    transform = image_transform_v2(config, is_train=False)
    with torch.inference_mode():
        theirs = reference.encode_image(torch.stack([transform(Image.open(BytesIO(data))) for data in files]))
    assert ours.dtype == np.float32
    assert cosines(ours, theirs).min() >= 0.99999
    # An untrained model gives similar vectors for everything, but not that similar: the presets can be told apart.
    assert cosines(ours[:2], theirs[1:]).max() < 0.9999


def test_both_spellings_of_the_preprocessor_and_its_parts(checkpoint: Path) -> None:
    changes = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    for name in ("imagePreprocessor", "image_preprocessor"):
        image = load(checkpoint, **{name: "CLIPA"}, **changes).info.image
        assert image is not None
        assert (image.size, image.mean, image.std) == ((SIZE, SIZE), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert (image.interpolation, image.resize_mode) == ("bilinear", "squash")


def test_the_default_size_is_224() -> None:
    assert {preset.size for preset in PRESETS.values()} == {(224, 224)}
    assert parse_properties({"name": "x", "dimensions": 1}).size == 224  # type: ignore[union-attr]


def test_the_legacy_spelling_of_an_architecture(checkpoint: Path) -> None:
    assert load(checkpoint, name=ARCHITECTURE.replace("-", "/")).info.dimensions == DIMENSIONS


@pytest.mark.parametrize("option", [{"precision": "fp16"}, {"jit": True}])
def test_half_precision_and_jit_give_almost_the_same(checkpoint: Path, option: dict[str, Any]) -> None:
    plain, model = load(checkpoint), load(checkpoint, **option)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, SIZE, SIZE), np.uint8)
    images, texts = model.encode_images([pixels]), model.encode_texts([model.tokenize(TEXTS)])
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(images, plain.encode_images([pixels]), atol=0.02)
    np.testing.assert_allclose(texts, plain.encode_texts([plain.tokenize(TEXTS)]), atol=0.02)


def test_what_a_loaded_model_says_of_itself(checkpoint: Path, reference: torch.nn.Module) -> None:
    info = load(checkpoint).info
    assert info.name == "mine"
    assert info.key == spec(localpath=str(checkpoint)).key
    assert info.key.startswith("mine||")
    assert info.device == "cpu"
    assert info.nbytes >= sum(weight.nbytes for weight in reference.parameters())
    assert json.loads(info.properties_json)["localpath"] == str(checkpoint)


def test_null_is_as_good_as_absent(checkpoint: Path) -> None:
    """Marqo's clients write null for what they leave out (section 1.5)."""
    fields = ("url", "modelLocation", "jit", "precision", "tokenizer", "imagePreprocessor", "mean", "std")
    plain, model = load(checkpoint), load(checkpoint, **dict.fromkeys(fields))
    assert model.info.image == plain.info.image
    assert parse_properties({"name": "x", "dimensions": 1, "size": None}) == parse_properties(
        {"name": "x", "dimensions": 1}
    )
    place = {"hf": {"repoId": "a/b", "filename": None}, "s3": None, "authRequired": None}
    properties = parse_properties({"type": "hf", "dimensions": 1, "name": None, "tokens": None, "modelLocation": place})
    assert properties.location == {"authRequired": False, "hf": {"repoId": "a/b"}}  # type: ignore[union-attr]
    assert properties.tokens == 128  # type: ignore[union-attr]


def test_members_that_mean_nothing_here_are_ignored(checkpoint: Path) -> None:
    load(checkpoint, pretrained="openai", note="", notes=None, model_size=3, tritonModelName="x", text_query_prefix="q")


# --- What does not load says why ---


class Harmful:
    """Runs a program when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.fixture(scope="module")
def damaged(checkpoint: Path) -> Path:
    """A folder of checkpoints that are none."""
    folder = checkpoint.parent / "damaged"
    folder.mkdir()
    for name in ("plain.pt", "plain.safetensors"):
        whole = (checkpoint.parent / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
        (folder / f"head-{name}").write_bytes(whole[:5])
        (folder / f"junk-{name}").write_bytes(b"\xff" * 1000)
        (folder / f"html-{name}").write_bytes(b"<!doctype html><title>404</title>")
        (folder / f"empty-{name}").write_bytes(b"")
    torch.save([1, 2], folder / "list.pt")
    torch.save({}, folder / "no-weights.pt")
    save_file({"unrelated": torch.zeros(3)}, folder / "unrelated.safetensors")
    (folder / "harmful.pt").write_bytes(pickle.dumps({"state_dict": Harmful(folder / "trace")}))
    (folder / "folder.pt").mkdir()
    return folder


DAMAGED = [f"{kind}-plain.{ext}" for kind in ("cut", "head", "junk", "html", "empty") for ext in ("pt", "safetensors")]
DAMAGED += ["list.pt", "no-weights.pt", "unrelated.safetensors", "harmful.pt"]


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_checkpoints_are_refused(damaged: Path, name: str) -> None:
    assert re.match(r"Unable to load model 'mine': \w+", refusal(localpath=str(damaged / name)))


def test_a_checkpoint_runs_no_code(damaged: Path) -> None:
    refusal(localpath=str(damaged / "harmful.pt"))
    assert not (damaged / "trace").exists()


@pytest.mark.parametrize("path", ["missing.pt", "folder.pt", "", "\0", "a" * 5000])
def test_no_such_checkpoint(damaged: Path, path: str) -> None:
    assert "Unable to load model" in refusal(localpath=str(damaged / path) if path else path)


def test_the_wrong_architecture(checkpoint: Path) -> None:
    message = refusal(name=OTHER, localpath=str(checkpoint))
    assert "Unable to load model" in message
    assert "size mismatch" in message


@pytest.mark.parametrize(
    "name", ["ViT-B-unheard-of", "", "../x", f"open_clip/{ARCHITECTURE}/x", "local-dir:/tmp", "\0"]
)
def test_no_such_architecture(checkpoint: Path, name: str) -> None:
    assert "not an architecture" in refusal(name=name, localpath=str(checkpoint))


def test_the_wrong_dimensions(checkpoint: Path) -> None:
    message = refusal(localpath=str(checkpoint), dimensions=512)
    assert "dimensions is 512" in message
    assert str(DIMENSIONS) in message


def test_the_wrong_size(checkpoint: Path) -> None:
    assert "trial run" in refusal(localpath=str(checkpoint), size=64)


def test_weights_that_are_no_numbers(folder: Path, reference: torch.nn.Module) -> None:
    """Told when loading: later every request of every client would fail with a 500."""
    weights = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    weights["visual.proj"] = torch.full_like(weights["visual.proj"], float("nan"))
    save_file(weights, folder / "nan.safetensors")
    assert "finite" in refusal(localpath=str(folder / "nan.safetensors"))


def test_a_std_that_turns_pictures_into_infinities(checkpoint: Path) -> None:
    refusal(localpath=str(checkpoint), std=[1e-45, 1, 1])


NAMES = [
    ARCHITECTURE,
    "ViT-B-32",
    "ViT-B-32/laion2b_s34b_b79k",
    "open_clip/ViT-B-32",
    "open_clip/ViT-B-32/",
    "open_clip/ViT-B-32/unheard-of",
    "open_clip/unheard-of/openai",
    "open_clip/ViT-B-32/laion2b_s34b_b79k/more",
    "clip/ViT-B-32/openai",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_without_a_checkpoint(name: str) -> None:
    assert "Invalid model properties" in refusal(name=name)


def test_a_path_is_no_pretrained_tag(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip would open it: a file of this machine, chosen by a stranger."""
    monkeypatch.chdir(checkpoint.parent)
    assert "Invalid model properties" in refusal(name=f"open_clip/{ARCHITECTURE}/{checkpoint.name}")
    assert "Invalid model properties" in refusal(name=f"open_clip/{ARCHITECTURE}/{checkpoint}")


BAD_PROPERTIES: list[tuple[str, dict[str, Any]]] = [
    *(("name", {"name": value}) for value in (None, 5, [])),
    *(("dimensions", {"dimensions": value}) for value in (None, 0, -1, 1.5, "many", [])),
    *(("size", {"size": value}) for value in (0, -1, "large")),
    *(("mean", {"mean": value}) for value in ([0.5], [0.5] * 4, 0.5, ["a", "b", "c"])),
    *(("std", {"std": value}) for value in ([0.5], "x", [0, 1, 1], [1, -1, 1])),
    ("imagePreprocessor", {"imagePreprocessor": "OpenClip"}),
    ("precision", {"precision": "fp8"}),
    ("jit", {"jit": "sometimes"}),
    ("localpath", {"localpath": ["a"]}),
    ("url", {"url": 5}),
    ("tokenizer", {"tokenizer": {}}),
    ("modelLocation", {"modelLocation": "s3"}),
    ("localpath", {"localpath": "a", "url": "http://example.com/b"}),
    ("modelLocation", {"modelLocation": {"hf": {}}, "localpath": "a"}),
    # What would take all of the machine's memory before anything else could go wrong.
    ("size", {"size": 1_000_000}),
]


@pytest.mark.parametrize(("field", "properties"), BAD_PROPERTIES)
def test_bad_properties_name_their_field(field: str, properties: dict[str, Any]) -> None:
    message = refusal(**properties)
    assert message.startswith(("Invalid model properties", "Unable to load model"))
    assert field in message


@pytest.mark.parametrize("field", ["name", "dimensions"])
def test_what_must_be_there(field: str) -> None:
    properties = {"name": "x", "dimensions": 5, "type": "open_clip"}
    del properties[field]
    with pytest.raises(RequestError, match=rf"Invalid model properties(?s:.*){field}"):
        parse_properties(properties)


LEGACY = ["sbert", "clip", "test", "sbert_onnx", "clip_onnx", "fp16_clip"]


@pytest.mark.parametrize("kind", [*LEGACY, "", "OPEN_CLIP", None, 5, ["open_clip"], {"random": 1}])
def test_types_that_are_not_served(kind: Any) -> None:
    message = refusal(type=kind)
    assert "Unsupported model type" in message
    assert all(served in message for served in SERVED_TYPES)


def test_no_model() -> None:
    message = refusal(type="no_model")
    assert "Unsupported model type" in message
    assert "cannot vectorise anything with 'no_model'" in message


HUB = """
import sys, torch
from embedding.errors import Fault, RequestError
from embedding.models.loader import load_model
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
for name in sys.argv[1:]:
    config = ModelConfig(model_name="mine", model_properties={"name": name, "dimensions": 512})
    try:
        load_model(ModelSpec.from_config(config), torch.device("cpu"))
    except RequestError as error:
        assert error.fault is Fault.REFUSED
        print(" ".join(error.message.split()))
"""


def test_a_hub_that_cannot_be_reached() -> None:
    """In a process of its own: the hub's client reads its environment once, on import.

    Offline, since the client tries an address that does not answer again for 23 seconds.
    """
    names = ["hf-hub:owner/repository", "open_clip/ViT-B-32/laion2b_s34b_b79k", "hf-hub:"]
    finished = subprocess.run(
        [sys.executable, "-c", HUB, *names],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "HOME": "/nonexistent", "PATH": ""},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    lines = finished.stdout.splitlines()
    assert len(lines) == len(names), finished.stderr
    for line in lines:
        assert line.startswith("Unable to load model 'mine': ")


# --- Texts that are meant badly ---


def letters(count: int) -> str:
    return "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), count))


def test_a_word_without_end_does_not_hold_up_everybody(checkpoint: Path) -> None:
    """Somebody's base64 in a text field. open_clip's own tokenizer takes quadratic time: minutes for this one."""
    model = load(checkpoint)
    start = time.process_time()
    tokens = model.tokenize(["a red circle " + letters(20_000)])
    assert time.process_time() - start < 2
    assert torch.equal(torch.as_tensor(tokens), open_clip.get_tokenizer(ARCHITECTURE)(["a red circle " + letters(400)]))


# --- Random models ---


def test_a_random_model() -> None:
    properties = {"type": "random", "dimensions": 7, "tokens": 128, "notes": "", "name": "random/tiny"}
    model = load_model(ModelSpec.from_config(ModelConfig(model_name="r", model_properties=properties)), CPU)
    assert model.info.image is None
    rows = model.encode_texts([model.tokenize(["a", "b"]), model.tokenize([""])])
    np.testing.assert_array_equal(rows, random_vectors(["a", "b", ""], 7))
    assert rows.dtype == np.float32


@pytest.mark.parametrize("dimensions", [None, 0, -1, "many", 2_000_000_000])
def test_random_models_that_cannot_be(dimensions: Any) -> None:
    """The last one would fill the machine's memory with a single text."""
    with pytest.raises(RequestError, match=r"Invalid model properties(?s:.*)dimensions"):
        parse_properties({"type": "random", "dimensions": dimensions})


# --- From a request to a spec ---


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


def test_a_folder_of_architectures_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"architectures: .*missing"):
        add_architectures(tmp_path / "missing")


def test_a_zero_vector_is_not_divided() -> None:
    rows = normalize(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_array_equal(rows, np.array([[0.6, 0.8], [0, 0]], np.float32))
