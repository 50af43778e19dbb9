"""The model cache with real models, loaded and run while it evicts them."""

from __future__ import annotations

import asyncio
import json
import random
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from embedding.models.cache import ModelCache
from embedding.models.loader import estimate_bytes, load_model
from embedding.models.model import Model
from embedding.models.openclip.model import add_architectures
from embedding.models.spec import ModelSpec
from embedding.protocol import ModelConfig
from tests.support.models import ANY_LOCAL_FILE

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
MODELS, CLIENTS = 20, 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSpec]:
    """Twenty models of one architecture, with weights of their own."""
    folder = tmp_path_factory.mktemp("twenty")
    (folder / "tiny-of-twenty.json").write_text(json.dumps(TINY))
    add_architectures(folder)
    specs = []
    for i in range(MODELS):
        torch.manual_seed(i)
        module = open_clip.create_model("tiny-of-twenty", require_pretrained=False)
        path = folder / f"{i}.safetensors"
        save_file({name: w.contiguous() for name, w in module.state_dict().items()}, path)
        properties = {"name": "tiny-of-twenty", "dimensions": 8, "size": 16, "localpath": str(path)}
        specs.append(ModelSpec.from_config(ModelConfig(model_name=f"m{i}", model_properties=properties)))
    return specs


@pytest.mark.usefixtures("one_thread")
def test_twenty_models_in_a_memory_budget_for_five(checkpoints: list[ModelSpec]) -> None:
    """From eight clients at random: every vector is right, and no more models are alive than the budget holds."""
    device = torch.device("cpu")
    (nbytes,) = {load_model(spec, device, ANY_LOCAL_FILE).info.nbytes for spec in checkpoints[:2]}
    expected = {spec: vector(load_model(spec, device, ANY_LOCAL_FILE)) for spec in checkpoints}
    alive: list[weakref.ref[Model]] = []
    most = 0

    def load(spec: ModelSpec) -> Model:
        nonlocal most
        model = load_model(spec, device, ANY_LOCAL_FILE)
        alive.append(weakref.ref(model))
        alive[:] = [reference for reference in alive if reference() is not None]
        most = max(most, len(alive))
        return model

    async def client(cache: ModelCache, seed: int) -> None:
        chooser = random.Random(seed)
        for _ in range(6):
            spec = chooser.choice(checkpoints)
            async with cache.use(spec) as model:
                found = await asyncio.to_thread(vector, model)
            np.testing.assert_array_equal(found, expected[spec])
            assert cache.stats().bytes <= 5 * nbytes + 10
            del model

    async def main() -> None:
        with ThreadPoolExecutor(2) as executor:
            cache = ModelCache(
                load, executor, 5 * nbytes + 10, lambda spec: estimate_bytes(spec, device, ANY_LOCAL_FILE)
            )
            await asyncio.wait_for(asyncio.gather(*(client(cache, i) for i in range(CLIENTS))), 60)
            stats = cache.stats()
            assert stats.failed_loads == 0
            assert stats.loads - stats.evictions == len(cache.infos()) <= 5

    asyncio.run(main())
    assert 4 <= most <= 5


def vector(model: Model) -> np.ndarray:
    return model.encode_texts([model.tokenize(["a red circle"])])
