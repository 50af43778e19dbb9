"""Vectors of a model in the shape of ViT-B-32 over the torture corpus, and the memory that it takes."""

from __future__ import annotations

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import open_clip
import psutil
import pytest
import torch

from benchmarks.lib.photo import photo
from demo.pictures import EVALUATION_SEEDS, scenes
from embedding.image.pixels import preprocess
from embedding.models.cpu.capabilities import has_bf16
from embedding.models.cpu.packing import Packing
from embedding.models.loader import release_memory
from embedding.models.openclip.towers import Normalization, TowerPass, image_encoder, text_encoder
from tests.support import corpus
from tests.support.pixels import OPENAI

NORMALIZATION = Normalization(OPENAI, torch.device("cpu"), torch.float32)
TEXTS = [scene.caption for scene in scenes(30, EVALUATION_SEEDS[0])] + ["", "a red circle, 42 °C", "word " * 100]
PHOTOS, NEIGHBOURS = 160, 10

needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")


def vit_b_32() -> Any:
    """With random weights."""
    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-32", pretrained=None).eval().requires_grad_(False)


def towers(module: Any, packing: Packing) -> tuple[TowerPass, TowerPass]:
    """For pictures and for texts."""
    probe = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return image_encoder(module, NORMALIZATION, probe, packing), text_encoder(module, tokens(TEXTS[-2:]), packing)


def tokens(texts: list[str]) -> torch.Tensor:
    numbers: torch.Tensor = open_clip.get_tokenizer("ViT-B-32")(texts)
    return numbers


@torch.inference_mode()
def unit_vectors(encode: TowerPass, items: torch.Tensor) -> torch.Tensor:
    """Vectors of length 1 in double precision."""
    return torch.nn.functional.normalize(torch.cat([encode(part) for part in torch.split(items, 16)]).double(), dim=1)


def distance(given: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest 1 - cosine."""
    return float((1 - (given * expected).sum(1)).max())


def nearest(vectors: torch.Tensor) -> list[set[int]]:
    """Of each vector the nearest others."""
    similarities = vectors @ vectors.T
    similarities.fill_diagonal_(-2)
    return [set(row) for row in similarities.topk(NEIGHBOURS).indices.tolist()]


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """uint8 (n, 3, 224, 224)."""
    return torch.from_numpy(np.stack([preprocess(data, OPENAI, name) for name, data in corpus.whole().items()]))


@pytest.fixture(scope="module")
def expected(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """open_clip's vectors of all pictures and all texts."""
    module = vit_b_32()
    of_pictures = unit_vectors(lambda part: module.encode_image(NORMALIZATION(part).clone()), pictures)
    return of_pictures, unit_vectors(module.encode_text, tokens(TEXTS))


@pytest.mark.parametrize("pays", [True, False], ids=["packed", "plain"])
def test_single_precision_gives_open_clips_vectors(
    pays: bool, pictures: torch.Tensor, expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    packing = Packing(pays=lambda *_: pays)
    encode_images, encode_texts = towers(vit_b_32(), packing)
    assert bool(packing)
    assert distance(unit_vectors(encode_images, pictures), expected[0]) <= 1e-6
    assert distance(unit_vectors(encode_texts, tokens(TEXTS)), expected[1]) <= 1e-6


@needs_bf16
def test_bf16_keeps_vectors(pictures: torch.Tensor, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    packing = Packing(torch.bfloat16)
    encode_images, encode_texts = towers(vit_b_32(), packing)
    assert bool(packing)
    assert 1e-7 < distance(unit_vectors(encode_images, pictures), expected[0]) <= 1e-4
    assert 1e-7 < distance(unit_vectors(encode_texts, tokens(TEXTS)), expected[1]) <= 1e-4


@needs_bf16
def test_bf16_keeps_the_nearest_pictures() -> None:
    photos = torch.from_numpy(
        np.stack([np.asarray(photo(seed, 224, 224)).transpose(2, 0, 1) for seed in range(PHOTOS)])
    )
    full, low = (
        nearest(unit_vectors(towers(vit_b_32(), Packing(dtype))[0], photos)) for dtype in (None, torch.bfloat16)
    )
    kept = [len(given & wanted) / NEIGHBOURS for given, wanted in zip(low, full, strict=True)]
    assert np.mean(kept) >= 0.99


@pytest.mark.parametrize("dtype", [None, pytest.param(torch.bfloat16, marks=needs_bf16)], ids=["fp32", "bf16"])
def test_a_model_takes_little_more_than_its_weights(dtype: torch.dtype | None) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        taken, weights, left = fresh.submit(memory, dtype).result()
    assert taken <= 1.1 * weights
    assert left <= 0.1 * weights


def memory(dtype: torch.dtype | None) -> tuple[int, int, int]:
    """Bytes that a packed model takes in this process, bytes of its weights, and bytes that it leaves behind."""

    def used() -> int:
        gc.collect()
        release_memory()
        return int(psutil.Process().memory_full_info().uss)

    def take() -> tuple[Packing, tuple[TowerPass, TowerPass], int]:
        module, packing = vit_b_32(), Packing(dtype, lambda *_: True)
        ways = towers(module, packing)
        rest = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
        return packing, ways, rest + packing.nbytes

    # What the first model leaves behind (libraries, a tokenizer, compiled products) belongs to none.
    take()
    before = used()
    model = take()
    taken = used() - before
    weights = model[-1]
    del model
    return taken, weights, used() - before
