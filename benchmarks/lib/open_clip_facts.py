"""What one release of open_clip builds for pretrained tags, as JSON: `python open_clip_facts.py ROWS.json OUT.json`.

Run by benchmarks/open_clip_versions.py once in each environment, so it imports nothing of this project except, for what
this server builds, `embedding.models.openclip.marqo_differences`. The release's own `create_model_and_transforms` does
the work. But weights are random numbers that depend on their names, and towers have two layers: widths, heads and all
else are the release's.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from open_clip import factory, hf_model, openai
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image

TEXTS = (
    "a photo of a cat",
    "",
    "Ein BÄR &amp; zwei  Bären\n\t!",
    "\u7ea2\u8272\u7684\u5706 \U0001f600 caf\u0065\u0301",
    "it's 42 don't we'LL <end_of_text> x",
    "word " * 100,
    "\x1c\x85\u3000 blanks\u200b \u00a0",
)
WIDTHS = {
    "roberta-base": (768, 12, 50265),
    "xlm-roberta-base": (768, 12, 250002),
    "xlm-roberta-large": (1024, 16, 250002),
}
"""Width, heads and tokens of text towers of transformers, whose configs are on the hub."""


def main() -> None:
    """Reads {"rows": [[architecture, tag], …], "served": whether models are built as this server does}."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    asked, out = (Path(name) for name in sys.argv[1:3])
    given = json.loads(asked.read_text())
    replace_network(served=given["served"])
    facts = {"/".join(row): facts_of(*row) for row in given["rows"]}
    out.write_text(json.dumps({"tags": tags(), "rows": facts}))


def tags() -> dict[str, Any]:
    """Every tag of the release's table with its preprocessing and its architecture's config."""
    return {
        "/".join(row): {"entry": get_pretrained_cfg(*row), "config": CONFIG(row[0])}
        for row in open_clip.list_pretrained()
    }


CONFIG: Callable[[str], Any] = open_clip.get_model_config


@torch.inference_mode()
def facts_of(architecture: str, tag: str) -> dict[str, Any]:
    """Builds the model of one tag, and describes it with its vectors of two pictures and of `TEXTS`."""
    PLACE.clear()
    model, _, transform = open_clip.create_model_and_transforms(architecture, tag)
    model.eval()
    tokenizer = open_clip.get_tokenizer(architecture)
    size = transform.transforms[0].size
    height, width = (size, size) if isinstance(size, int) else size
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    images = torch.stack([transform(Image.fromarray(one)) for one in noise])
    tokens, tokenizing = tokens_of(tokenizer, model)
    text = getattr(model, "text", model)
    return {
        "class": type(model).__name__,
        "activation, pictures": activations(model.visual),
        "activation, texts": activations(text if text is not model else model.transformer),
        "weights, names and shapes": checksum({key: list(value.shape) for key, value in model.state_dict().items()}),
        "weights, place": PLACE.get("place"),
        "preprocessing": json.loads(json.dumps(model.visual.preprocess_cfg)),
        "tokenizer": tokenizing,
        "context length": getattr(model, "context_length", getattr(text, "context_length", None)),
        "logit bias": getattr(model, "logit_bias", None) is not None,
        "vectors, pictures": model.encode_image(images).tolist(),
        "vectors, texts": model.encode_text(tokens).tolist(),
    }


def activations(tower: torch.nn.Module) -> list[str]:
    """Names of the classes of activation functions."""
    found = {type(part).__name__ for part in tower.modules()}
    return sorted(name for name in found if "GELU" in name or "ReLU" in name or name in ("SiLU", "SwiGLU"))


def tokens_of(tokenizer: Any, model: Any) -> tuple[torch.Tensor, Any]:
    """Tokens, and a description of the tokenizer. Those of transformers are on the hub: only their settings count."""
    if isinstance(tokenizer, dict):
        text = getattr(model, "text", model)
        words = torch.randint(3, 20_000, (2, tokenizer["context_length"]), generator=torch.Generator().manual_seed(0))
        words[:, 12:] = 1
        words[:, 11] = getattr(text, "vocab_size", 20_000) - 1
        return words, tokenizer
    tokens = tokenizer(list(TEXTS))
    return tokens, {"kind": type(tokenizer).__name__, "tokens": checksum(tokens.tolist())}


def checksum(value: Any) -> str:
    """A checksum of plain data."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


# --- Replacements of what is on the network ---

PLACE: dict[str, str | None] = {}
"""`place`: where the weights of the model that is being built would come from."""


def replace_network(served: bool) -> None:
    """Replaces downloads of weights and configs, and the number of layers, within open_clip."""
    entry_of: Callable[[str, str], Any] = get_pretrained_cfg
    if served:
        from embedding.models.openclip.marqo_differences import pretrained

        def create(architecture: str, tag: str) -> Any:
            config, entry = pretrained(architecture, tag)
            factory.get_model_config = lambda _: reduced(config)
            factory.get_pretrained_cfg = lambda *_: entry
            return plain(architecture, tag)

        plain = open_clip.create_model_and_transforms
        open_clip.create_model_and_transforms = create
    factory.get_model_config = lambda name: reduced(CONFIG(name))
    factory.download_pretrained = download
    factory.load_checkpoint = lambda model, *_, **__: model.load_state_dict(weights_for(model))
    factory.HFTokenizer = lambda name, **settings: {
        "kind": "HFTokenizer",
        "name": name,
        **{key: value for key, value in settings.items() if value is not None},
    }
    timm_create = timm.create_model
    timm.create_model = lambda name, **given: timm_create(name, **given, **shallow(name))
    hf_model.AutoConfig.from_pretrained = staticmethod(transformers_config)
    if not served and hasattr(factory, "load_openai_model"):
        factory.load_openai_model = openai_model(factory.load_openai_model, entry_of)


def download(entry: dict[str, Any], **_: Any) -> str:
    """Notes where the weights would come from. Newer releases prefer the hub."""
    prefers_hub = not hasattr(factory, "load_openai_model")
    hub, url = entry.get("hf_hub"), entry.get("url")
    PLACE["place"] = hub if hub and (prefers_hub or not url) else url
    return "weights"


def openai_model(load: Callable[..., Any], entry_of: Callable[[str, str], Any]) -> Callable[..., Any]:
    """The older release's function for OpenAI's archives, with random weights. It derives the model from the shapes."""

    def loaded(name: str, **settings: Any) -> Any:
        PLACE["place"] = entry_of(name, "openai")["url"]
        config = reduced(CONFIG(name))
        shapes = open_clip.CLIP(**config)
        openai.download_pretrained_from_url = lambda *_, **__: "weights"
        torch.jit.load = missing
        torch.load = lambda *_, **__: weights_for(shapes)
        return load(name, **settings)

    return loaded


def missing(*_: Any, **__: Any) -> None:
    """Fails as the load of an archive without code does."""
    raise RuntimeError("not a TorchScript archive")


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """The config with two layers in each tower."""
    config = json.loads(json.dumps(config))
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        tower = config.get(part)
        if tower is not None and not {"timm_model_name", "hf_model_name"} & tower.keys():
            layers = tower.get("layers", 12)
            tower["layers"] = [1] * len(layers) if isinstance(layers, list) else 2
    return config


def shallow(name: str) -> dict[str, Any]:
    """Arguments with which timm builds few layers."""
    return {"depths": (1, 1, 1, 1)} if name.startswith("convnext") else {"depth": 2}


def transformers_config(name: str, **_: Any) -> Any:
    """The config of a text tower of transformers, with two layers."""
    import transformers

    width, heads, tokens = WIDTHS[name]
    kind = transformers.XLMRobertaConfig if name.startswith("xlm") else transformers.RobertaConfig
    return kind(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        vocab_size=tokens,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )


def weights_for(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights for a model. Half precision can hold them, since OpenAI's weights have it."""
    return {key: random_like(key, tensor) for key, tensor in model.state_dict().items()}


def random_like(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Random numbers of a tensor's shape and type, from its name as the seed."""
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim < 2:
        around = 1.0 if key.endswith(("weight", "running_var", "scale")) else 0.0
        return (around + 0.1 * noise).half().to(tensor.dtype)
    scale = float(1.5 / tensor[0].numel() ** 0.5)
    return (noise * scale).half().to(tensor.dtype)


if __name__ == "__main__":
    main()
