"""From a request's model to a warm one: sizes known beforehand, warm-up, full memory, and which types are served."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_hook

from embedding.errors import Fault, RequestError
from embedding.models.cache import ModelCache
from embedding.models.files.options import LoadOptions
from embedding.models.loader import estimate_bytes, load_model, release_memory
from embedding.models.model import Model, Pixels
from embedding.models.openclip.model import add_architectures
from embedding.models.random import random_vectors
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from tests.support.models import ANY_LOCAL_FILE
from tests.support.tiny_bert import WIDTH, save_bert

CPU = torch.device("cpu")
ARCHITECTURE, TIMM, HUGE = "tiny-loader", "tiny-timm", "huge-loader"
DIMENSIONS, SIZE = 24, 32
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
VISION = {"image_size": SIZE, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TIMM_VISION = {"image_size": SIZE, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    ARCHITECTURE: {"embed_dim": DIMENSIONS, "vision_cfg": VISION, "text_cfg": TEXT},
    TIMM: {"embed_dim": DIMENSIONS, "vision_cfg": TIMM_VISION, "text_cfg": TEXT, "custom_text": True},
    # A thousand terabytes: no machine's memory, and no machine's address space.
    HUGE: {"embed_dim": DIMENSIONS, "vision_cfg": VISION, "text_cfg": TEXT | {"context_length": 2**24}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each architecture that fits into memory, alone and among what training leaves."""
    folder = tmp_path_factory.mktemp("loader")
    for name, config in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    add_architectures(folder)
    for name in (ARCHITECTURE, TIMM):
        torch.manual_seed(0)
        module = open_clip.create_model(name, require_pretrained=False)
        weights = {key: weight.contiguous() for key, weight in module.state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")
        save_file({key: weight.half() for key, weight in weights.items()}, folder / f"{name}-half.safetensors")
        optimizer = {"state": {i: {"exp_avg": w.clone(), "exp_avg_sq": w} for i, w in enumerate(weights.values())}}
        torch.save({"epoch": 3, "state_dict": weights, "optimizer": optimizer}, folder / f"{name}-training.pt")
    return folder


def spec(**properties: Any) -> ModelSpec:
    return ModelSpec.from_config(ModelConfig(model_name="mine", model_properties=properties))


def clip(folder: Path, file: str = f"{ARCHITECTURE}.safetensors", name: str = ARCHITECTURE, **more: Any) -> ModelSpec:
    return spec(name=name, dimensions=DIMENSIONS, size=SIZE, localpath=str(folder / file), **more)


# --- Sizes ---


@pytest.mark.parametrize("suffix", [".safetensors", "-half.safetensors", "-training.pt"])
@pytest.mark.parametrize("name", [ARCHITECTURE, TIMM])
def test_the_size_is_known_beforehand(folder: Path, name: str, suffix: str) -> None:
    """Exactly, whatever else is in the file and in whatever precision."""
    wanted = clip(folder, name + suffix, name)
    assert estimate_bytes(wanted, CPU, ANY_LOCAL_FILE) == load_model(wanted, CPU, ANY_LOCAL_FILE).info.nbytes


@pytest.mark.parametrize("name", [ARCHITECTURE, TIMM])
def test_the_size_in_half_precision(folder: Path, name: str) -> None:
    plain, half = (clip(folder, f"{name}.safetensors", name, precision=precision) for precision in ("fp32", "fp16"))
    model = load_model(half, CPU, ANY_LOCAL_FILE)
    assert model.info.nbytes < load_model(plain, CPU, ANY_LOCAL_FILE).info.nbytes
    assert estimate_bytes(half, CPU, ANY_LOCAL_FILE) == pytest.approx(model.info.nbytes, rel=0.01)


def test_a_random_model_takes_nothing() -> None:
    assert estimate_bytes(spec(type="random", dimensions=4), CPU, ANY_LOCAL_FILE) == 0


def test_an_estimate_refuses_what_loading_would(folder: Path, tmp_path: Path) -> None:
    options = LoadOptions(model_sources=("path",), path_roots=(tmp_path,), cache_dir=tmp_path)
    for estimate in (estimate_bytes, load_model):
        with pytest.raises(RequestError, match=r"Unable to load model 'mine'.*path_roots"):
            estimate(clip(folder), CPU, options)
        with pytest.raises(RequestError, match="Unsupported model type"):
            estimate(spec(type="languagebind", dimensions=4), CPU, ANY_LOCAL_FILE)


# --- Warm-up ---


@pytest.mark.usefixtures("one_thread")
def test_the_first_request_is_as_quick_as_the_tenth(folder: Path, tmp_path: Path) -> None:
    bert = spec(type="hf", dimensions=WIDTH, localpath=str(save_bert(tmp_path / "bert")))
    ratios = []
    for wanted in (clip(folder), bert) * 3:
        model = load_model(wanted, CPU, ANY_LOCAL_FILE)
        seconds = [request(model) for _ in range(10)]
        ratios.append(seconds[0] / median(seconds))
    # Neighbours on the same CPUs may slow single requests down, but not all first ones.
    assert median(ratios) < 3


def request(model: Model) -> float:
    started = time.perf_counter()
    model.encode_texts([model.tokenize(["a red circle"] * 3)])
    if model.info.image is not None:
        model.encode_images([np.zeros((3, 3, SIZE, SIZE), np.uint8)])
    return time.perf_counter() - started


def test_warm_up_runs_both_towers_alone_and_together(folder: Path) -> None:
    towers = {TEXT["width"]: "text", VISION["width"]: "image"}
    seen: list[tuple[str, int]] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        # The last layer but one of each tower: what is left of an item is its vector.
        if isinstance(module, torch.nn.LayerNorm) and inputs[0].ndim == 2:
            count, width = inputs[0].shape
            seen.append((towers[width], count))

    hook = register_module_forward_hook(note)
    try:
        load_model(clip(folder), CPU, ANY_LOCAL_FILE)
    finally:
        hook.remove()
    # Before, while the model is built, its shortcuts are compared with open_clip's own passes.
    assert sorted(seen[-4:]) == [("image", 1), ("image", 8), ("text", 1), ("text", 8)]


def test_the_log_tells_time_and_size(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "ray.serve"):
            model = load_model(clip(folder), CPU, ANY_LOCAL_FILE)
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = {record.getMessage() for record in caplog.records if "loaded model" in record.getMessage()}
    assert f"{model.info.nbytes / 2**20:.1f} MiB" in line
    assert " s, " in line
    assert line.startswith(f"loaded model {model.info.key} on cpu in ")


# --- A full device ---


@pytest.fixture
def huge(folder: Path) -> ModelSpec:
    return clip(folder, name=HUGE)


def test_a_model_that_memory_cannot_hold(huge: ModelSpec) -> None:
    with pytest.raises(MemoryError, match="memory"):
        load_model(huge, CPU, ANY_LOCAL_FILE)
    expected = estimate_bytes(huge, CPU, ANY_LOCAL_FILE)
    assert expected is not None
    assert expected > 2**44


@pytest.mark.parametrize("budget", [0, 100 * 2**20])
def test_a_too_large_model_does_not_affect_others(folder: Path, huge: ModelSpec, budget: int) -> None:
    """With a budget it is not even tried; without one everything idle is ejected before the second try."""

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            cache = ModelCache(
                lambda spec: load_model(spec, CPU, ANY_LOCAL_FILE),
                executor,
                budget,
                lambda spec: estimate_bytes(spec, CPU, ANY_LOCAL_FILE) if budget else None,
                release_memory,
            )
            async with cache.use(clip(folder)):
                pass
            with pytest.raises(RequestError) as caught:
                async with cache.use(huge):
                    pass
            assert caught.value.fault is Fault.REFUSED
            assert "Unable to load model 'mine'" in caught.value.message
            assert ("more than the 104857600" if budget else "memory is full") in caught.value.message
            assert len(cache.infos()) == (1 if budget else 0)
            async with cache.use(clip(folder)) as model:
                assert np.isfinite(model.encode_texts([model.tokenize(["still served"])])).all()

    asyncio.run(main())


# --- Types ---


def test_the_operators_hash_for_random_models() -> None:
    for name in ("blake3", "md5"):
        model = load_model(spec(type="random", dimensions=4), CPU, LoadOptions(random_hash=name))
        rows = model.encode_texts([model.tokenize(["hello"])])
        np.testing.assert_array_equal(rows, random_vectors(["hello"], 4, name))


@pytest.mark.parametrize("kind", ["languagebind", "multilingual_clip", "twelvelabs", "sbert", "clip"])
def test_types_that_are_not_served(kind: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_model(spec(type=kind, name="x", dimensions=4), CPU, ANY_LOCAL_FILE)
    assert caught.value.fault is Fault.REFUSED
    assert kind in caught.value.message
    assert "served are: open_clip, hf, hf_stella, random" in caught.value.message


def test_no_model() -> None:
    with pytest.raises(RequestError, match="cannot vectorise anything with 'no_model'"):
        load_model(spec(type="no_model", dimensions=4), CPU, ANY_LOCAL_FILE)


def test_text_models_refuse_pictures(tmp_path: Path) -> None:
    """They are never asked for that: the pipeline embeds the content itself, since `info.image` is None."""
    pictures: list[Pixels] = [np.zeros((1, 3, 4, 4), np.uint8)]
    for wanted in (
        spec(type="random", dimensions=4),
        spec(type="hf", dimensions=WIDTH, localpath=str(save_bert(tmp_path / "bert"))),
    ):
        model = load_model(wanted, CPU, ANY_LOCAL_FILE)
        assert model.info.image is None
        with pytest.raises(RequestError, match="takes no pictures"):
            model.encode_images(pictures)
