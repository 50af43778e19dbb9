"""The shortcuts through open_clip's towers give open_clip's vectors, and only models that they fit take them."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from embedding.image_spec import ImageSpec
from embedding.models.cpu.packing import Packing
from embedding.models.openclip.model import add_architectures
from embedding.models.openclip.towers import Normalization, image_encoder, text_encoder

SIZE = 48
VISION: dict[str, Any] = {"image_size": SIZE, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16}
TEXT: dict[str, Any] = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
IMAGE = ImageSpec((SIZE, SIZE), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), "bicubic", "shortest")
NORMALIZATION = Normalization(IMAGE, torch.device("cpu"), torch.float32)
TEXTS = ["a cat", "", "two words and a third, of which there are more than fit " * 3, "x"]


def module_of(folder: Path, vision: dict[str, Any], text: dict[str, Any], **other: Any) -> Any:
    """A model with random weights, none of them 0 or 1 as open_clip initialises some."""
    config = {"embed_dim": 24, "vision_cfg": VISION | vision, "text_cfg": TEXT | text, **other}
    (folder / "towers.json").write_text(json.dumps(config))
    add_architectures(folder)
    torch.manual_seed(3)
    module = open_clip.create_model("towers", require_pretrained=False).eval()
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8))


def tokens(texts: list[str] = TEXTS) -> torch.Tensor:
    tokens: torch.Tensor = open_clip.SimpleTokenizer(context_length=20)(texts)
    return tokens


IMAGE_TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "quickgelu": ({}, {}, {"quick_gelu": True}),
    "layer scale": ({"ls_init_value": 0.5}, {}, {}),
    "no first norm": ({"no_ln_pre": True}, {}, {}),
    "norm after pooling": ({"final_ln_after_pool": True}, {}, {}),
    "patches that leave a border": ({"patch_size": 14}, {}, {}),
    "fixed positions": ({"pos_embed_type": "sin_cos_2d"}, {}, {}),
    "dropout of patches when training": ({"patch_dropout": 0.5}, {}, {}),
    "text of another class": ({}, {}, {"custom_text": True}),
}
OTHER_IMAGE_TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "mean of tokens": ({"pool_type": "avg"}, {}, {}),
    "attention as pooling": ({"attentional_pool": True, "attn_pooler_heads": 2}, {}, {}),
    "other blocks": ({"qk_norm": True}, {}, {}),
    "resnet": ({"layers": [1, 1, 1, 1], "image_size": 64, "patch_size": None}, {}, {}),
}
TEXT_TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "quickgelu": ({}, {}, {"quick_gelu": True}),
    "of its own": ({}, {}, {"custom_text": True}),
    "projection with a bias": ({}, {"proj_bias": True}, {"custom_text": True}),
    "no projection": ({}, {"proj_type": "none", "width": 24}, {"custom_text": True}),
    "end by number": ({}, {"pool_type": "eos", "eos_id": 49407}, {"custom_text": True}),
}
OTHER_TEXT_TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "no mask": ({}, {"no_causal_mask": True, "pool_type": "last"}, {"custom_text": True}),
    "last token": ({}, {"pool_type": "last"}, {"custom_text": True}),
    "token of its own": ({}, {"embed_cls": True}, {"custom_text": True}),
}


def assert_alike(ours: torch.Tensor, open_clips: torch.Tensor) -> None:
    np.testing.assert_allclose(ours.numpy(), open_clips.numpy(), rtol=0, atol=1e-5 * float(open_clips.abs().max()))


@torch.inference_mode()
@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_pictures_take_the_short_way(name: str, tmp_path: Path) -> None:
    vision, text, other = IMAGE_TOWERS[name]
    module = module_of(tmp_path, vision, text, **other)
    encode = image_encoder(module, NORMALIZATION, pictures(2), Packing())
    assert isinstance(encode, partial)
    assert encode.func.__name__ == "_encode_images"
    for count in (1, 5):
        assert_alike(encode(pictures(count)), module.encode_image(NORMALIZATION(pictures(count)).clone()))


@torch.inference_mode()
@pytest.mark.parametrize("name", OTHER_IMAGE_TOWERS)
def test_other_image_towers_are_left_alone(name: str, tmp_path: Path) -> None:
    vision, text, other = OTHER_IMAGE_TOWERS[name]
    module = module_of(tmp_path, vision, text, **other)
    size = vision.get("image_size", SIZE)
    probe = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    encode = image_encoder(module, NORMALIZATION, probe, Packing())
    assert not hasattr(encode, "func")
    assert_alike(encode(probe), module.encode_image(NORMALIZATION(probe).clone()))


@torch.inference_mode()
@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_texts_end_where_they_end(name: str, tmp_path: Path) -> None:
    vision, text, other = TEXT_TOWERS[name]
    module = module_of(tmp_path, vision, text, **other)
    encode = text_encoder(module, tokens(), Packing())
    assert isinstance(encode, partial)
    assert encode.func.__name__ == "_encode_texts"
    for some in (TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS[2:3]):
        assert_alike(encode(tokens(some)), module.encode_text(tokens(some)))


@torch.inference_mode()
@pytest.mark.parametrize("name", OTHER_TEXT_TOWERS)
def test_other_text_towers_are_left_alone(name: str, tmp_path: Path) -> None:
    vision, text, other = OTHER_TEXT_TOWERS[name]
    module = module_of(tmp_path, vision, text, **other)
    assert text_encoder(module, tokens(), Packing()) == module.encode_text


@torch.inference_mode()
def test_a_shortcut_that_changes_vectors_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = module_of(tmp_path, {}, {})
    block = module.visual.transformer.resblocks[-1]
    block.mlp.register_forward_hook(lambda _, inputs, output: output + inputs[0].sum(dim=1, keepdim=True))
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        encode = image_encoder(module, NORMALIZATION, pictures(2), Packing())
    finally:
        logger.removeHandler(caplog.handler)
    for what in ("replaced layers for pictures", "a shortcut for pictures"):
        assert f"{what} not used, since vectors would differ: cosine 0." in caplog.text
    assert not hasattr(encode, "func")
    assert_alike(encode(pictures(3)), module.encode_image(NORMALIZATION(pictures(3)).clone()))
