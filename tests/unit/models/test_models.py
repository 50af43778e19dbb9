"""Loading models, with tiny checkpoints made here: docs/protocol.md, sections 7.1 and 7.4. No hub is reached."""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from benchmarks.lib.photo import jpeg, photo
from embedding.errors import RequestError
from embedding.image.pixels import preprocess
from embedding.models.files.options import LoadOptions
from embedding.models.loader import load_model
from embedding.models.model import normalize
from embedding.models.openclip.model import PRESETS
from embedding.models.properties import parse_properties
from embedding.models.random import random_vectors
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from tests.support.models import ARCHITECTURE, CPU, DIMENSIONS, FORMATS, SIZE, checkpoint, folder, load, reference, spec  # noqa: F401

TEXTS = ["a red circle", "", "ein Bär – 図", "word " * 500]


def cosines(ours: np.ndarray, theirs: torch.Tensor) -> np.ndarray:
    return np.asarray((normalize(ours) * normalize(theirs.numpy())).sum(axis=1))


# --- What loads gives open_clip's vectors ---


@pytest.mark.parametrize("name", FORMATS)
def test_texts_are_open_clips(reference: Any, checkpoint: Path, name: str) -> None:
    model = load(checkpoint.parent / name)
    ours = model.encode_texts([model.tokenize(TEXTS[:1]), model.tokenize(TEXTS[1:])])
    with torch.inference_mode():
        theirs = reference.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS))
    assert ours.dtype == np.float32
    assert ours.shape == (len(TEXTS), DIMENSIONS)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_pictures_are_open_clips_with_every_preset(reference: Any, checkpoint: Path, preset: str) -> None:
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
    # An untrained model gives similar vectors for everything, but not that similar: the presets can be distinguished.
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
    nothing = {"pretrained": "openai", "note": "", "notes": None, "model_size": 3, "text_query_prefix": "q"}
    model, plain = load(checkpoint, **nothing, tritonModelName="x"), load(checkpoint)
    assert model.info.image == plain.info.image
    np.testing.assert_array_equal(
        model.encode_texts([model.tokenize(TEXTS)]), plain.encode_texts([plain.tokenize(TEXTS)])
    )


# --- Texts that are meant badly ---


def letters(count: int) -> str:
    return "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), count))


def test_a_word_without_end_does_not_hold_up_everybody(checkpoint: Path) -> None:
    """Base64 in a text field. open_clip's own tokenizer takes quadratic time: minutes for this one."""
    model = load(checkpoint)
    start = time.process_time()
    tokens = model.tokenize(["a red circle " + letters(20_000)])
    assert time.process_time() - start < 2
    assert torch.equal(torch.as_tensor(tokens), open_clip.get_tokenizer(ARCHITECTURE)(["a red circle " + letters(400)]))


# --- Random models ---


def test_a_random_model() -> None:
    properties = {"type": "random", "dimensions": 7, "tokens": 128, "notes": "", "name": "random/tiny"}
    wanted = ModelSpec.from_config(ModelConfig(model_name="r", model_properties=properties))
    model = load_model(wanted, CPU, LoadOptions())
    assert model.info.image is None
    rows = model.encode_texts([model.tokenize(["a", "b"]), model.tokenize([""])])
    np.testing.assert_array_equal(rows, random_vectors(["a", "b", ""], 7))
    assert rows.dtype == np.float32


@pytest.mark.parametrize("dimensions", [None, 0, -1, "many", 2_000_000_000])
def test_random_models_that_cannot_be(dimensions: Any) -> None:
    """The last one would fill the machine's memory with a single text."""
    with pytest.raises(RequestError, match=r"Invalid model properties(?s:.*)dimensions"):
        parse_properties({"type": "random", "dimensions": dimensions})


def test_a_zero_vector_is_not_divided() -> None:
    rows = normalize(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_array_equal(rows, np.array([[0.6, 0.8], [0, 0]], np.float32))
