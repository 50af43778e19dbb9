"""A residual attention block of open_clip on a CPU: the same result with fewer passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch.nn.functional import scaled_dot_product_attention

from embedding.models.cpu.linear import Linear
from embedding.models.cpu.onednn import Activation
from embedding.models.cpu.packing import Packing

_QUICK = 1.702
"""QuickGELU(x) is x * sigmoid(1.702 * x), so 1.702 * QuickGELU(x) is swish(1.702 * x), which oneDNN computes with the
product before it."""


class CpuBlock(torch.nn.Module):
    """Computes what a `ResidualAttentionBlock` does, with layers of `embedding.models.cpu`.

    * The query has a layer of its own, since the last block of a vision transformer needs only one of them.
    * Residuals are added in single precision, whatever the type of the weights.

    Args:
        block: one for which `fits` holds. Weights that are packed are taken from it.
        packing: of the model.
    """

    def __init__(self, block: Any, packing: Packing) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        width = attention.embed_dim
        self.ln_1, self.ln_2, self.ls_1, self.ls_2 = block.ln_1, block.ln_2, block.ls_1, block.ls_2
        self.heads = attention.num_heads
        self.dtype: torch.dtype = packing.dtype or attention.in_proj_weight.dtype
        self.query, self.keys_values = packing.split(
            attention.in_proj_weight, attention.in_proj_bias, [width, 2 * width]
        )
        self.out = packing.linear(attention.out_proj.weight, attention.out_proj.bias, residual=True)
        self.activation = _activation(mlp.gelu)
        self.factor = _QUICK if self.activation == "swish" else 1.0
        self.c_fc = packing.linear(mlp.c_fc.weight, mlp.c_fc.bias * self.factor, self.activation)
        self.c_proj = packing.linear(mlp.c_proj.weight, mlp.c_proj.bias * self.factor, residual=self.factor == 1)

    def get_weight_dtype(self) -> torch.dtype:
        """See `ResidualAttentionBlock`."""
        return self.dtype

    def forward(
        self,
        x: torch.Tensor,
        k_x: None = None,
        v_x: None = None,
        attn_mask: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        """(n, length, width) to the same shape and type. See `ResidualAttentionBlock.forward`; `causal` is another way
        to give a causal mask."""
        normed = self._normed(self.ln_1, x)
        return self._mlp(self._attend(x, normed, normed, attn_mask, causal))

    def first(self, x: torch.Tensor) -> torch.Tensor:
        """The first token of the result, (n, 1, width)."""
        normed = self._normed(self.ln_1, x)
        return self._mlp(self._attend(x[:, :1].contiguous(), normed[:, :1], normed, None, False))

    def _attend(
        self,
        x: torch.Tensor,
        queries: torch.Tensor,
        others: torch.Tensor,
        mask: torch.Tensor | None,
        causal: bool,
    ) -> torch.Tensor:
        query = self.query(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.keys_values(others).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if mask is None else mask.to(query.dtype)
        heads = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return _added(self.out, heads.transpose(1, 2).flatten(-2), x, self.ls_1)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        normed = self._normed(self.ln_2, x)
        inner = self.c_fc(normed if self.factor == 1 else normed.mul_(self.factor), self.activation)
        return _added(self.c_proj, inner, x, self.ls_2, 1 / self.factor)

    def _normed(self, norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = norm(x)
        return normed.to(self.dtype)


def use_cpu_blocks(root: torch.nn.Module, packing: Packing) -> None:
    """Replaces the blocks of open_clip's transformers in a module by `CpuBlock`s, where these fit."""
    for transformer in [module for module in root.modules() if type(module) is Transformer and module.batch_first]:
        blocks: Any = transformer.resblocks
        for index, block in enumerate(blocks):
            if fits(block):
                packing.replace(blocks, str(index), CpuBlock(block, packing))


def fits(block: Any) -> bool:
    """Whether a `CpuBlock` computes what this block does."""
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention, mlp = block.attn, block.mlp
    return (
        attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and type(mlp.gelu) in (torch.nn.GELU, QuickGELU)
    )


def _activation(module: torch.nn.Module) -> Activation:
    if isinstance(module, torch.nn.GELU):
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return "swish"


def _added(
    layer: Linear, x: torch.Tensor, residual: torch.Tensor, scale: torch.nn.Module, factor: float = 1.0
) -> torch.Tensor:
    if isinstance(scale, torch.nn.Identity) and factor == 1:
        return layer.plus(x, residual)
    return torch.add(residual, scale(layer(x)), alpha=factor)
