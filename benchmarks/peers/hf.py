"""Converts an open_clip checkpoint to a folder of a Hugging Face CLIPModel, for servers that load only those."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lib.models import FOLDER, Checkpoint

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OTHERS = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def hf_folder(checkpoint: Checkpoint) -> Path:
    """The folder for `from_pretrained`, which is made if need be."""
    folder = FOLDER / f"{checkpoint.architecture}-hf"
    if not (folder / "model.safetensors").exists():
        import open_clip
        from safetensors.torch import load_file, save_file

        folder.mkdir(parents=True, exist_ok=True)
        open_clip.add_model_config(FOLDER)
        architecture = open_clip.get_model_config(checkpoint.architecture)
        _write_tokenizer(folder)
        _write_json(folder / "config.json", _config(architecture))
        _write_json(folder / "preprocessor_config.json", _preprocessing(architecture["vision_cfg"]["image_size"]))
        save_file(_renamed(load_file(checkpoint.path)), folder / "model.safetensors", {"format": "pt"})
    return folder


def _renamed(tensors: Tensors) -> dict[str, torch.Tensor]:
    renamed = {theirs: tensors[ours].contiguous() for ours, theirs in OTHERS.items()}
    renamed |= {theirs: tensors[ours].T.contiguous() for ours, theirs in PROJECTIONS.items()}
    for ours, theirs in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        depth = len(
            [name for name in tensors if name.startswith(f"{ours}.resblocks.") and name.endswith("in_proj_bias")]
        )
        for layer in range(depth):
            renamed |= _block(tensors, f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}")
    return renamed


def _block(tensors: Tensors, ours: str, theirs: str) -> dict[str, torch.Tensor]:
    renamed = {}
    for kind in ("weight", "bias"):
        for name, their_name in BLOCK.items():
            renamed[f"{theirs}.{their_name}.{kind}"] = tensors[f"{ours}.{name}.{kind}"].contiguous()
        parts = tensors[f"{ours}.attn.in_proj_{kind}"].chunk(3)
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            renamed[f"{theirs}.self_attn.{name}.{kind}"] = part.contiguous()
    return renamed


def _config(architecture: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": architecture["embed_dim"],
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": "gelu",
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // 64,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "projection_dim": architecture["embed_dim"],
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_act": "gelu",
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "projection_dim": architecture["embed_dim"],
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    }


def _preprocessing(size: int) -> dict[str, Any]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(OPENAI_DATASET_MEAN),
        "image_std": list(OPENAI_DATASET_STD),
        "do_convert_rgb": True,
    }


def _write_tokenizer(folder: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    _write_json(folder / "vocab.json", {ends.get(token, token): number for token, number in tokenizer.encoder.items()})
    merges = "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    settings = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", special)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value))
