"""Products of oneDNN with packed weights, by operators of torch that are not public.

On some processors oneDNN is more than twice as quick as MKL, which torch uses for single precision. Its public ways to
oneDNN lay out the weights anew in every call. torch.compile uses the operators of this module, which take weights that
were laid out once, and add what follows a product (activation, residual) before the result leaves the cache.

Source: torch/_inductor/fx_passes/mkldnn_fusion.py, aten/src/ATen/native/mkldnn/Linear.cpp.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal

import torch

logger = logging.getLogger("ray.serve")

Activation = Literal["none", "gelu", "gelu_tanh", "swish"]
_ALGORITHMS: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "swish": ("swish", ""),
}
_TOLERANCES = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (0.02, 0.1)}
"""Relative and absolute, for results of about ten at most."""
_PACKED_FOR = 64
"""Rows of the input for which oneDNN chooses the layout; it takes any number of rows."""


@cache
def is_usable(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators for float32 or bfloat16 on this processor, and they compute what they did
    when this was written."""
    try:
        right, reason = _is_right(dtype), "their results differ"
    except Exception as error:
        right, reason = False, str(error)
    if not right:
        logger.warning(
            "no packed products in %s (torch %s): %s; models compute with torch's public operators",
            dtype,
            torch.__version__,
            reason,
        )
    return right


def pack(weight: torch.Tensor) -> torch.Tensor:
    """Lays out a weight (outputs, inputs), float32 or bfloat16, for `product`; the result is opaque."""
    packed: torch.Tensor = _operators()._reorder_linear_weight(weight.contiguous(), _PACKED_FOR)
    return packed


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The weight that was packed, bit by bit."""
    return packed.to_dense()


def product(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, activation: Activation = "none"
) -> torch.Tensor:
    """activation(x @ weight.T + bias).

    Args:
        x: (…, inputs), of the weight's type.
        packed: from `pack`.
        bias: (outputs,), of the weight's type.
        activation: applied to the result.
    """
    name, algorithm = _ALGORITHMS[activation]
    result: torch.Tensor = _operators()._linear_pointwise(x, packed, bias, name, [], algorithm)
    return result


def product_plus(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> torch.Tensor:
    """residual + x @ weight.T + bias; `residual` has the shape and the type of the result."""
    result: torch.Tensor = _operators()._linear_pointwise.binary(x, residual, packed, bias, "add")
    return result


def _operators() -> Any:
    return torch.ops.mkldnn


def _is_right(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((2, 3, 40), (24, 40), (24,), (2, 3, 24))
    )
    plain = torch.nn.functional.linear(x, weight, bias)
    packed = pack(weight)
    pairs = (
        (unpack(packed), weight),
        (product(x, packed, bias), plain),
        (product(x, packed, bias, "gelu"), torch.nn.functional.gelu(plain)),
        (product(x, packed, bias, "gelu_tanh"), torch.nn.functional.gelu(plain, approximate="tanh")),
        (product(x, packed, bias, "swish"), torch.nn.functional.silu(plain)),
        (product_plus(x, packed, bias, residual), residual + plain),
    )
    rtol, atol = _TOLERANCES[dtype]
    return all(torch.allclose(given, expected, rtol=rtol, atol=atol) for given, expected in pairs)
