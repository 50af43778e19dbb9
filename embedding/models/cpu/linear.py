"""Linear layers on a CPU, with weights as torch takes them or packed for oneDNN, whichever is quicker here.

Input: the weight and the bias of a layer, and what follows it. Output: a module that computes the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from statistics import geometric_mean

import torch
from torch.nn import functional

from embedding.models.cpu import onednn
from embedding.models.cpu.onednn import Activation

_TYPES = (torch.float32, torch.bfloat16)
_TRIAL_ROWS = (16, 128)
"""Rows of the inputs of a trial: a search, and a part of a batch."""
_TRIALS = 3
_LEAST_GAIN = 1.03
"""Packed weights must be quicker by this factor: torch's public operators are preferred."""
_REMEMBERED = 4096
"""Shapes, which are those of the models that clients name."""


class PlainLinear(torch.nn.Module):
    """A linear layer on torch's public operators.

    Args:
        weight: (outputs, inputs).
        bias: (outputs,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def original(self) -> torch.Tensor:
        """The weight, (outputs, inputs)."""
        return self.weight

    def forward(self, x: torch.Tensor, activation: Activation = "none") -> torch.Tensor:
        """(…, inputs) to (…, outputs) of the same type, computed in the type of the weight."""
        return _ACTIVATIONS[activation](functional.linear(x.to(self.weight.dtype), self.weight, self.bias)).to(x.dtype)

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """`residual` and the layer's output, in the type of `residual`, whose shape is that of the output."""
        return residual + functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class PackedLinear(torch.nn.Module):
    """A linear layer on oneDNN's packed weights.

    Args:
        weight: from `onednn.pack`.
        bias: (outputs,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def original(self) -> torch.Tensor:
        """The weight as it was before it was packed, (outputs, inputs)."""
        return onednn.unpack(self.weight)

    def forward(self, x: torch.Tensor, activation: Activation = "none") -> torch.Tensor:
        """(…, inputs) to (…, outputs) of the same type, computed in the type of the weight."""
        return onednn.product(x.to(self.weight.dtype), self.weight, self.bias, activation).to(x.dtype)

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """`residual` and the layer's output, in the type of `residual`, whose shape is that of the output."""
        if residual.dtype == self.weight.dtype:
            return onednn.product_plus(x, self.weight, self.bias, residual)
        return residual + onednn.product(x.to(self.weight.dtype), self.weight, self.bias)


Linear = PlainLinear | PackedLinear
PackingPays = Callable[[torch.Tensor, Activation, bool], bool]
"""Of a layer's weight, what follows the product, and whether it is added to a residual."""


def packing_pays(weight: torch.Tensor, activation: Activation = "none", residual: bool = False) -> bool:
    """Whether a layer of this shape and type is quicker with packed weights on this processor.

    Measured when a shape is first asked for, in some tens of milliseconds for a layer of ViT-B-32, and remembered.

    Args:
        weight: (outputs, inputs).
        activation: what follows the product.
        residual: whether the output is added to a residual.
    """
    if weight.device.type != "cpu" or weight.dtype not in _TYPES or not onednn.is_usable(weight.dtype):
        return False
    return _packing_pays(*weight.shape, weight.dtype, activation, residual)


@lru_cache(_REMEMBERED)
def _packing_pays(outputs: int, inputs: int, dtype: torch.dtype, activation: Activation, residual: bool) -> bool:
    # The same value everywhere: to draw a million at random takes longer than a product.
    weight, bias = torch.full((outputs, inputs), 0.5, dtype=dtype), torch.full((outputs,), 0.5, dtype=dtype)
    plain, packed = PlainLinear(weight, bias), PackedLinear(onednn.pack(weight), bias)
    gains = []
    for rows in _TRIAL_ROWS:
        x, onto = torch.full((rows, inputs), 0.5, dtype=dtype), torch.full((rows, outputs), 0.5)

        def call(layer: Linear, x: torch.Tensor = x, onto: torch.Tensor = onto) -> torch.Tensor:
            return layer.plus(x, onto) if residual else layer.forward(x, activation)

        plain_s, packed_s = _quickest(partial(call, plain), partial(call, packed))
        gains.append(plain_s / packed_s)
    return geometric_mean(gains) > _LEAST_GAIN


def _quickest(*calls: Callable[[], torch.Tensor]) -> list[float]:
    """CPU seconds that the quickest call of each takes in this thread, in alternation: other threads, with which a
    product may be shared, are as likely to be busy during one as during the other."""
    for call in calls:
        call()
    rounds = [[_cpu_s(call) for call in calls] for _ in range(_TRIALS)]
    return [min(taken) for taken in zip(*rounds, strict=True)]


def _cpu_s(call: Callable[[], torch.Tensor]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "swish": functional.silu,
}
