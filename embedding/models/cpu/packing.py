"""Replaces the linear layers of a loaded model by quicker ones, which take its weights."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from embedding.models.cpu import onednn
from embedding.models.cpu.linear import Linear, PackedLinear, PackingPays, PlainLinear, packing_pays
from embedding.models.cpu.onednn import Activation

logger = logging.getLogger("ray.serve")

_MIN_COSINE = {torch.float32: 1 - 1e-6, torch.float16: 0.999, torch.bfloat16: 0.999}
"""Least cosine between the vectors of a quicker way and those of the plain one, by the type in which it computes."""


class Packing:
    """The replaced layers of one model, or of a part of it.

    A parameter whose values have gone into a layer, packed or in another type, is left without them, so that a model
    takes no more memory than before: `original` gives them back. They are kept until it is known whether the model's
    vectors stay the same; then call `keep` or `undo`.

    Args:
        dtype: in which linear layers compute, bfloat16 for example; None is the type of their weights.
        pays: says which layers are packed.
    """

    def __init__(self, dtype: torch.dtype | None = None, pays: PackingPays = packing_pays) -> None:
        self.dtype = dtype
        self.pays = pays
        self._taken: dict[torch.Tensor, list[Linear]] = {}
        self._before: dict[torch.Tensor, torch.Tensor] = {}
        self._replaced: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []

    def __bool__(self) -> bool:
        return bool(self._replaced)

    @property
    def nbytes(self) -> int:
        """Bytes of the values that layers have taken."""
        layers = (layer for layers in self._taken.values() for layer in layers)
        return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)

    def linear(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: Activation = "none",
        residual: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Linear:
        """The quickest layer with this weight.

        Args:
            weight: (outputs, inputs): a parameter of the model, or computed from one.
            bias: (outputs,), or None.
            activation: what follows the product.
            residual: whether its output is added to a residual.
            dtype: in which it computes, if not in that of the model's other layers.
        """
        (layer,) = self.split(weight, bias, [len(weight)], activation, residual, dtype)
        return layer

    def split(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        outputs: list[int],
        activation: Activation = "none",
        residual: bool = False,
        dtype: torch.dtype | None = None,
    ) -> list[Linear]:
        """As `linear`, but several layers with these numbers of outputs, whose weights are rows of one."""
        dtype = dtype or self.dtype or weight.dtype
        weights = torch.split(weight.to(dtype), outputs)
        biases = torch.split(bias.to(dtype), outputs) if bias is not None else [None] * len(outputs)
        pairs = list(zip(weights, biases, strict=True))
        layers: list[Linear]
        if self.pays(weights[-1], activation, residual):
            layers = [PackedLinear(onednn.pack(part), some) for part, some in pairs]
        else:
            layers = [PlainLinear(part, some) for part, some in pairs]
        # A weight that was computed from a parameter comes beside the model's own, whose bytes are known before a load.
        own = isinstance(weight, torch.nn.Parameter)
        if own and (isinstance(layers[0], PackedLinear) or dtype != weight.dtype):
            self._taken[weight] = layers
            self._before[weight] = weight.data
            weight.data = weight.new_empty(0)
        return layers

    def replace(self, parent: torch.nn.Module, name: str, new: torch.nn.Module) -> None:
        """Puts a module in the place of another."""
        self._replaced.append((parent, name, parent.get_submodule(name)))
        setattr(parent, name, new)

    def original(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values of a parameter, wherever they are; in `dtype` if a layer has taken them."""
        layers = self._taken.get(tensor)
        return tensor if layers is None else torch.cat([layer.original() for layer in layers])

    def keep(self) -> None:
        """Frees what was replaced."""
        self._before.clear()

    def include(self, part: Packing) -> None:
        """Adds the layers of a part of the model, which has been kept."""
        self._taken.update(part._taken)
        self._replaced += part._replaced

    def undo(self) -> None:
        """Makes the model what it was."""
        for parent, name, old in reversed(self._replaced):
            setattr(parent, name, old)
        for parameter, values in self._before.items():
            parameter.data = values
        self._replaced.clear()
        self._before.clear()
        self._taken.clear()


def replace_linear_layers(root: torch.nn.Module, packing: Packing) -> None:
    """Replaces each `torch.nn.Linear` below a module, if another layer is quicker or computes in another type.

    Weights that several modules share stay as they are.
    """
    uses = Counter(id(parameter) for module in root.modules() for parameter in module.parameters(recurse=False))
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not torch.nn.Linear or uses[id(child.weight)] > 1:
                continue
            layer = packing.linear(child.weight, child.bias)
            if isinstance(layer, PackedLinear) or packing.dtype is not None:
                packing.replace(parent, name, layer)


def is_equivalent(
    what: str,
    way: Callable[[Any], torch.Tensor],
    probe: Any,
    expected: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> bool:
    """Whether a way gives the expected vectors, up to rounding.

    Args:
        what: it is, for the log.
        way: a function of `probe`.
        probe: what is encoded.
        expected: the vectors of the plain way, (n, dimensions).
        dtype: in which it computes, if that is not the type of the vectors.
    """
    try:
        cosine = float(cosine_similarity(way(probe).float(), expected.float()).min())
        reason = f"cosine {cosine:.6f}"
        right = cosine >= _MIN_COSINE[dtype or expected.dtype]
    except Exception as error:
        right, reason = False, f"{type(error).__name__}: {error}"
    if not right:
        logger.warning("%s not used, since vectors would differ: %s", what, reason)
    return right


def bf16_nbytes(module: torch.nn.Module) -> int:
    """Bytes of a module whose linear layers compute in bfloat16."""
    nbytes = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    for part in module.modules():
        name = "in_proj_weight" if isinstance(part, torch.nn.MultiheadAttention) else "weight"
        weight = getattr(part, name) if isinstance(part, torch.nn.MultiheadAttention | torch.nn.Linear) else None
        nbytes -= 0 if weight is None else weight.nbytes // 2
    return nbytes
