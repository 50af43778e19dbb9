"""The two towers of an open_clip model, without computations that no vector depends on.

* The last block of a vision transformer computes every token, but a picture's vector depends only on the first. So the
  last block needs all tokens as keys and values of its attention, but only the first one as query and afterwards.
* Under a causal mask, tokens after the end of a text have no effect on it; in a short query, most of the 77 tokens
  are such. Checks and reshapes of torch's attention module are left out too: for few tokens, a seventh of the time.
* (x/255 - mean)/std is linear, as is the layer that embeds patches of a picture: on a CPU one product does both.

Such a shortcut is used only for models of exactly the classes that it was written for, and only if, when the model is
loaded, its vectors equal those of open_clip's own forward pass up to float rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from torch.nn.functional import cosine_similarity, linear, scaled_dot_product_attention

from embedding.image_spec import ImageSpec
from embedding.models.openclip.buffers import float_buffer

logger = logging.getLogger("ray.serve")

TowerPass = Callable[[torch.Tensor], torch.Tensor]
MIN_COSINE = {torch.float32: 1 - 1e-6, torch.float16: 0.999, torch.bfloat16: 0.99}
"""Least cosine between the vectors of a shortcut and those of open_clip, by the type of the weights."""


class Normalization:
    """Normalises uint8 pixels, (x/255 - mean)/std, by one multiplication and one addition.

    Args:
        image: has mean and std.
        device: of the pixels.
        dtype: of the result.
    """

    def __init__(self, image: ImageSpec, device: torch.device, dtype: torch.dtype) -> None:
        mean, std = torch.tensor(image.mean), torch.tensor(image.std)
        self.scale = (1 / (255 * std)).view(1, 3, 1, 1).to(device)
        self.shift = (-mean / std).view(1, 3, 1, 1).to(device)
        self._dtype = dtype

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, height, width) to the same shape; on a CPU valid until the calling thread's next batch."""
        images = float_buffer(pixels.shape).copy_(pixels) if pixels.device.type == "cpu" else pixels.to(torch.float32)
        return images.mul_(self.scale).add_(self.shift).to(self._dtype)


@torch.inference_mode()
def image_encoder(module: Any, normalization: Normalization, probe: torch.Tensor) -> TowerPass:
    """Chooses how a model's pictures are encoded.

    Args:
        module: from open_clip.
        normalization: of its pictures.
        probe: a few pictures, for which the vectors of a shortcut are compared with open_clip's.

    Returns:
        A function of uint8 pixels (n, 3, height, width) on the model's device: vectors (n, dimensions).
    """

    def plain(pixels: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = module.encode_image(normalization(pixels))
        return vectors

    visual: Any = module.visual if type(module) in (CLIP, CustomTextCLIP) else None
    if not _has_class_token(visual):
        return plain
    embed = _folded_embedding(visual, normalization) or (lambda pixels: visual._embeds(normalization(pixels)))
    return _if_equivalent("pictures", partial(_encode_images, visual, embed), plain, probe)


@torch.inference_mode()
def text_encoder(module: Any, probe: torch.Tensor) -> TowerPass:
    """Chooses how a model's texts are encoded.

    Args:
        module: from open_clip.
        probe: tokens of a few texts, for which the vectors of a shortcut are compared with open_clip's.

    Returns:
        A function of tokens (n, context length) on the model's device: vectors (n, dimensions).
    """
    plain: TowerPass = module.encode_text
    custom = type(module) is CustomTextCLIP and type(module.text) is TextTransformer
    if not custom and type(module) is not CLIP:
        return plain
    tower = module.text if custom else module
    pool, end = (
        (tower.pool_type, tower.eos_id) if custom else (tower.text_pool_type, getattr(tower, "text_eos_id", None))
    )
    if pool not in ("argmax", "eos") or not _is_causal(tower):
        return plain
    return _if_equivalent("texts", partial(_encode_texts, tower, end if pool == "eos" else None), plain, probe)


def _if_equivalent(what: str, shortcut: TowerPass, plain: TowerPass, probe: torch.Tensor) -> TowerPass:
    """The shortcut if it gives the same vectors, else the plain way, whose errors the warm-up will report."""
    try:
        expected, given = plain(probe), shortcut(probe)
    except Exception:
        return plain
    cosine = cosine_similarity(given.float(), expected.float()).min()
    if cosine >= MIN_COSINE[expected.dtype]:
        return shortcut
    logger.warning("%s of this model are encoded by open_clip's own forward pass: cosine %.6f", what, float(cosine))
    return plain


def _has_class_token(visual: Any) -> bool:
    if type(visual) is not VisionTransformer or visual.output_tokens or visual.attn_pool is not None:
        return False
    return visual.pool_type == "tok" and _is_plain(visual.transformer)


def _is_causal(tower: Any) -> bool:
    masked_otherwise = getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)
    return tower.attn_mask is not None and not masked_otherwise and _is_plain(tower.transformer)


def _is_plain(transformer: Any) -> bool:
    blocks = transformer.resblocks if type(transformer) is Transformer and transformer.batch_first else ()
    return len(blocks) > 0 and all(type(block) is ResidualAttentionBlock for block in blocks)


def _encode_images(visual: Any, embed: TowerPass, pixels: torch.Tensor) -> torch.Tensor:
    """`VisionTransformer.forward` for models with a class token. Source: open_clip/transformer.py."""
    x = embed(pixels)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    keys = last.ln_1(x)
    x = x[:, :1] + last.ls_1(last.attention(keys[:, :1], keys, keys))
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    pooled: torch.Tensor = visual.ln_post(x[:, 0])
    return pooled if visual.proj is None else pooled @ visual.proj


def _folded_embedding(visual: Any, normalization: Normalization) -> TowerPass | None:
    """`VisionTransformer._embeds` with the normalisation folded into its weights; None on a GPU, where the convolution
    is faster, and for models that do not allow it."""
    layer = visual.conv1
    if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32 or layer.bias is not None:
        return None
    height, width = layer.kernel_size
    weight = (layer.weight * normalization.scale).flatten(1).contiguous()
    bias = (layer.weight * normalization.shift).sum((1, 2, 3))
    rows, columns = visual.grid_size

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        count = len(pixels)
        whole = pixels[:, :, : rows * height, : columns * width]
        patches = whole.reshape(count, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        flat = float_buffer(patches.shape).copy_(patches).view(count * rows * columns, -1)
        tokens = linear(flat, weight, bias).view(count, rows * columns, -1)
        start = visual.class_embedding.expand(count, 1, -1)
        x: torch.Tensor = visual.ln_pre(torch.cat([start, tokens], dim=1) + visual.positional_embedding)
        return x

    return embed


def _causal_attention(attention: torch.nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """Self-attention under a causal mask, for x of shape (n, length, width); returns the same shape."""
    projected = linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.view(*x.shape[:2], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    heads = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    return linear(heads.flatten(-2), attention.out_proj.weight, attention.out_proj.bias)


def _encode_texts(tower: Any, end: int | None, tokens: torch.Tensor) -> torch.Tensor:
    """`CLIP.encode_text` and `TextTransformer.forward`, computed up to the end of the longest text only.

    Source: open_clip/model.py, open_clip/transformer.py.
    """
    ends = (tokens if end is None else (tokens == end).int()).argmax(dim=-1)
    length = int(ends.max()) + 1
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens[:, :length]).to(dtype) + tower.positional_embedding[:length].to(dtype)
    for block in tower.transformer.resblocks:
        x = x + block.ls_1(_causal_attention(block.attn, block.ln_1(x)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    pooled: torch.Tensor = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
    projection: Any = tower.text_projection
    if isinstance(projection, torch.nn.Linear):
        pooled = projection(pooled)
    elif projection is not None:
        pooled = pooled @ projection
    return pooled
