"""What one release of open_clip builds for pretrained tags, as JSON: `python open_clip_facts.py ROWS.json OUT.json`.

Run by `benchmarks.open_clip_versions` once in each environment, so it imports nothing of this project but, for what the
server builds, `embedding.models.openclip.reference`. The release's own `create_model_and_transforms` does the work;
only the weights are ours, made of their names, and towers have two layers: widths, heads and all else stay as they are.
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
"""Of transformers' text towers, whose configs are on the hub: width, heads, tokens."""


def main() -> None:
    """Reads {"rows": [[architecture, tag], …], "served": whether as the server does it}."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    asked, out = (Path(name) for name in sys.argv[1:3])
    given = json.loads(asked.read_text())
    stand_in(served=given["served"])
    facts = {"/".join(row): facts_of(*row) for row in given["rows"]}
    out.write_text(json.dumps({"tags": tags(), "rows": facts}))


def tags() -> dict[str, Any]:
    """Every tag of the release's table: its preprocessing, and its architecture's config."""
    return {
        "/".join(row): {"entry": get_pretrained_cfg(*row), "config": CONFIG(row[0])}
        for row in open_clip.list_pretrained()
    }


CONFIG: Callable[[str], Any] = open_clip.get_model_config


@torch.inference_mode()
def facts_of(architecture: str, tag: str) -> dict[str, Any]:
    """One row, built."""
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
    """Classes of what is no matrix and no norm."""
    found = {type(part).__name__ for part in tower.modules()}
    return sorted(name for name in found if "GELU" in name or "ReLU" in name or name in ("SiLU", "SwiGLU"))


def tokens_of(tokenizer: Any, model: Any) -> tuple[torch.Tensor, Any]:
    """Tokens, and what to say of the tokenizer. Of transformers' ones, which are on the hub, only the settings."""
    if isinstance(tokenizer, dict):
        text = getattr(model, "text", model)
        words = torch.randint(3, 20_000, (2, tokenizer["context_length"]), generator=torch.Generator().manual_seed(0))
        words[:, 12:] = 1
        words[:, 11] = getattr(text, "vocab_size", 20_000) - 1
        return words, tokenizer
    tokens = tokenizer(list(TEXTS))
    return tokens, {"kind": type(tokenizer).__name__, "tokens": checksum(tokens.tolist())}


def checksum(value: Any) -> str:
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


# --- Stand-ins for what is on the network ---

PLACE: dict[str, str] = {}


def stand_in(served: bool) -> None:
    """Weights, sizes and files of the hub; everything else is the release's."""
    entry_of: Callable[[str, str], Any] = get_pretrained_cfg
    if served:
        from embedding.models.openclip.reference import pretrained

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
    """Where the weights would come from: newer releases prefer the hub."""
    prefers_hub = not hasattr(factory, "load_openai_model")
    hub, url = entry.get("hf_hub"), entry.get("url")
    PLACE["place"] = hub if hub and (prefers_hub or not url) else url
    return "weights"


def openai_model(load: Callable[..., Any], entry_of: Callable[[str, str], Any]) -> Callable[..., Any]:
    """The older release's way with OpenAI's archives: it builds what the weights' shapes say."""

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
    raise RuntimeError("not a TorchScript archive")


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """A config with two layers in each tower."""
    config = json.loads(json.dumps(config))
    for part in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        tower = config.get(part)
        if tower is not None and not {"timm_model_name", "hf_model_name"} & tower.keys():
            layers = tower.get("layers", 12)
            tower["layers"] = [1] * len(layers) if isinstance(layers, list) else 2
    return config


def shallow(name: str) -> dict[str, Any]:
    return {"depths": (1, 1, 1, 1)} if name.startswith("convnext") else {"depth": 2}


def transformers_config(name: str, **_: Any) -> Any:
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
    """Random numbers by the tensors' names, as half precision holds them: OpenAI's weights are in it."""
    state = model.state_dict()
    return {key: made_up(key, tensor) for key, tensor in state.items()}


def made_up(key: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim < 2:
        around = 1.0 if key.endswith(("weight", "running_var", "scale")) else 0.0
        return (around + 0.1 * noise).half().to(tensor.dtype)
    return (noise * (1.5 / tensor[0].numel() ** 0.5)).half().to(tensor.dtype)


if __name__ == "__main__":
    main()
