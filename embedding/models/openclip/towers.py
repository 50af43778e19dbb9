"""The two towers of an open_clip model, without computations that no vector depends on.

* The last block of a vision transformer computes every token, but a picture's vector depends only on the first. So the
  last block needs all tokens as keys and values of its attention, but only the first one as query and afterwards.
* Under a causal mask, tokens after the end of a text have no effect on it; in a short query, most of the 77 tokens
  are such. Checks and reshapes of torch's attention module are left out too: for few tokens, a seventh of the time.
* (x/255 - mean)/std is linear, as is the layer that embeds patches of a picture: on a CPU one product does both.

Such a shortcut is used only for models of exactly the classes that it was written for. On a CPU linear layers are
replaced by quicker ones (`embedding.models.cpu`), in models of any class. Either is kept only if, when the model is
loaded, the vectors equal those of open_clip's own forward pass up to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from torch.nn.functional import linear, scaled_dot_product_attention

from embedding.image_spec import ImageSpec
from embedding.models.cpu.linear import PlainLinear
from embedding.models.cpu.packing import Packing, is_equivalent, replace_linear_layers
from embedding.models.openclip.buffers import float_buffer
from embedding.models.openclip.cpu_block import CpuBlock, use_cpu_blocks

TowerPass = Callable[[torch.Tensor], torch.Tensor]


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
def image_encoder(module: Any, normalization: Normalization, probe: torch.Tensor, packing: Packing) -> TowerPass:
    """Chooses how a model's pictures are encoded.

    Args:
        module: from open_clip. Weights that are packed are taken from it.
        normalization: of its pictures.
        probe: a few pictures, for which the vectors of a quicker way are compared with open_clip's.
        packing: the model's, to which that of this tower is added.

    Returns:
        A function of uint8 pixels (n, 3, height, width) on the model's device: vectors (n, dimensions).
    """

    def plain(pixels: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = module.encode_image(normalization(pixels))
        return vectors

    visual: Any = module.visual
    shortcut = None
    if type(module) in (CLIP, CustomTextCLIP) and _has_class_token(visual):

        def shortcut(own: Packing) -> TowerPass:
            return partial(_encode_images, visual, _embedding(visual, normalization, own))

    return _quickest_right("pictures", visual, plain, shortcut, probe, packing)


@torch.inference_mode()
def text_encoder(module: Any, probe: torch.Tensor, packing: Packing) -> TowerPass:
    """Chooses how a model's texts are encoded.

    Args:
        module: from open_clip. Weights that are packed are taken from it.
        probe: tokens of a few texts, for which the vectors of a quicker way are compared with open_clip's.
        packing: the model's, to which that of this tower is added.

    Returns:
        A function of tokens (n, context length) on the model's device: vectors (n, dimensions).
    """
    tower = module.text if hasattr(module, "text") else module
    root = tower if tower is not module else module.transformer
    shortcut = _text_shortcut(module)
    return _quickest_right("texts", root, module.encode_text, shortcut and (lambda _: shortcut), probe, packing)


def _text_shortcut(module: Any) -> TowerPass | None:
    custom = type(module) is CustomTextCLIP and type(module.text) is TextTransformer
    if not custom and type(module) is not CLIP:
        return None
    tower = module.text if custom else module
    pool, end = (
        (tower.pool_type, tower.eos_id) if custom else (tower.text_pool_type, getattr(tower, "text_eos_id", None))
    )
    if pool not in ("argmax", "eos") or not _is_causal(tower):
        return None
    return partial(_encode_texts, tower, end if pool == "eos" else None)


def _quickest_right(
    what: str,
    root: torch.nn.Module,
    plain: TowerPass,
    shortcut: Callable[[Packing], TowerPass] | None,
    probe: torch.Tensor,
    packing: Packing,
) -> TowerPass:
    """Replaces the layers of a tower, and takes the shortcut, as far as the vectors stay those of the plain way.

    Args:
        what: the tower takes.
        root: the part of the module that holds its layers.
        plain: open_clip's own forward pass, whose errors the warm-up will report.
        shortcut: makes a quicker one, with layers of its own; None if none fits the model.
        probe: for which vectors are compared.
        packing: the model's, to which the replaced layers are added.
    """
    try:
        expected = plain(probe)
    except Exception:
        return plain
    if probe.device.type == "cpu" and expected.dtype == torch.float32 and not isinstance(root, torch.jit.ScriptModule):
        own = Packing(packing.dtype, packing.pays)
        use_cpu_blocks(root, own)
        replace_linear_layers(root, own)
        quick = shortcut(own) if shortcut else plain
        if own and is_equivalent(f"replaced layers for {what}", quick, probe, expected, own.dtype):
            own.keep()
            packing.include(own)
            return quick
        own.undo()
    quick = shortcut(Packing()) if shortcut else plain
    return quick if quick is plain or is_equivalent(f"a shortcut for {what}", quick, probe, expected) else plain


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
    pooled: torch.Tensor = visual.ln_post(_first_token(last, x)[:, 0])
    return pooled if visual.proj is None else pooled @ visual.proj


def _first_token(block: Any, x: torch.Tensor) -> torch.Tensor:
    """The first token of what a block makes of x (n, length, width): (n, 1, width)."""
    if isinstance(block, CpuBlock):
        return block.first(x)
    keys = block.ln_1(x)
    x = x[:, :1] + block.ls_1(block.attention(keys[:, :1], keys, keys))
    after: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return after


def _embedding(visual: Any, normalization: Normalization, packing: Packing) -> TowerPass:
    """`VisionTransformer._embeds` of normalised pixels. On a CPU the normalisation is folded into its weights; on a
    GPU the convolution is faster."""
    conv = visual.conv1
    if conv.weight.device.type != "cpu" or conv.weight.dtype != torch.float32 or conv.bias is not None:
        return lambda pixels: visual._embeds(normalization(pixels))
    height, width = conv.kernel_size
    weight = (conv.weight * normalization.scale).flatten(1).contiguous()
    bias = (conv.weight * normalization.shift).sum((1, 2, 3))
    # In single precision: it is a twentieth of the work of ViT-B-32, and would make nine tenths of what bf16 changes in
    # its vectors, since products with raw pixels cancel most of each other.
    layer = packing.linear(weight, bias, dtype=weight.dtype) if packing else PlainLinear(weight, bias)
    rows, columns = visual.grid_size

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        count = len(pixels)
        whole = pixels[:, :, : rows * height, : columns * width]
        patches = whole.reshape(count, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        flat = float_buffer(patches.shape).copy_(patches).view(count * rows * columns, -1)
        tokens = layer(flat).view(count, rows * columns, -1)
        start = visual.class_embedding.expand(count, 1, -1)
        x: torch.Tensor = visual.ln_pre(torch.cat([start, tokens], dim=1) + visual.positional_embedding)
        return x

    return embed


def _causal_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """What a block makes of x (n, length, width) under a causal mask: the same shape."""
    if isinstance(block, CpuBlock):
        return block.forward(x, causal=True)
    x = x + block.ls_1(_causal_attention(block.attn, block.ln_1(x)))
    after: torch.Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return after


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
    blocks: Any = tower.transformer.resblocks
    dtype = torch.float32 if isinstance(blocks[0], CpuBlock) else tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens[:, :length]).to(dtype) + tower.positional_embedding[:length].to(dtype)
    for block in blocks:
        x = _causal_block(block, x)
    pooled: torch.Tensor = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])
    projection: Any = tower.text_projection
    if isinstance(projection, torch.nn.Module):
        pooled = projection(pooled)
    elif projection is not None:
        pooled = pooled @ projection
    return pooled
