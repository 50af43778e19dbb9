"""torch's operators that are not public do what they did: if this fails with a new torch, read `onednn.py` again."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from embedding.models.cpu import onednn
from embedding.models.cpu.capabilities import has_bf16
from embedding.models.cpu.linear import packing_pays
from embedding.models.cpu.onednn import Activation

SHAPES = ((1, 1), (7, 3), (513, 100), (2304, 768))
"""Of weights: (outputs, inputs)."""
ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "swish": functional.silu,
}
DTYPES = {torch.float32: 1e-5, **({torch.bfloat16: 2e-2} if has_bf16() else {})}
"""Error of a result, relative to its largest value."""


def tensors(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """An input of two times three rows, a weight and a bias."""
    torch.manual_seed(outputs)
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((2, 3, inputs), (outputs, inputs), (outputs,)))
    return x, weight, bias


def assert_close(given: torch.Tensor, expected: torch.Tensor) -> None:
    assert given.dtype == expected.dtype
    assert given.shape == expected.shape
    error = (given.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= DTYPES[given.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_this_torch_has_them(dtype: torch.dtype) -> None:
    assert onednn.is_usable(dtype)


class Without:
    """A torch that has none of them."""


class Different:
    """A torch in which a product means something else."""

    _reorder_linear_weight = torch.ops.mkldnn._reorder_linear_weight

    class _linear_pointwise:
        def __new__(cls, x: torch.Tensor, packed: torch.Tensor, *_: object) -> torch.Tensor:  # type: ignore[misc]
            return x @ packed.to_dense().T

        binary = torch.ops.mkldnn._linear_pointwise.binary


@pytest.mark.parametrize(("torchs", "reason"), [(Without, "no attribute"), (Different, "their results differ")])
def test_a_torch_without_them_is_told_and_does_without(
    torchs: type, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", torchs)
    monkeypatch.setattr(onednn.logger, "propagate", True)
    onednn.is_usable.cache_clear()
    try:
        assert not onednn.is_usable(torch.float32)
        assert not packing_pays(torch.randn(512, 512))
    finally:
        onednn.is_usable.cache_clear()
    told = "\n".join(caplog.messages)
    assert "no packed products in torch.float32" in told
    assert reason in told


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_is_unpacked_bit_by_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    _, weight, _ = tensors(*shape, dtype)
    assert torch.equal(onednn.unpack(onednn.pack(weight)), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int], activation: Activation, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(*shape, dtype)
    for some in (bias, None):
        expected = ACTIVATIONS[activation](functional.linear(x, weight, some))
        assert_close(onednn.product(x, onednn.pack(weight), some, activation), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_with_a_residual(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight, bias = tensors(*shape, dtype)
    residual = torch.randn(2, 3, shape[0]).to(dtype)
    before = residual.clone()
    given = onednn.product_plus(x, onednn.pack(weight), bias, residual)
    assert_close(given, before + functional.linear(x, weight, bias))
    assert torch.equal(residual, before)


def test_rows_that_are_not_contiguous() -> None:
    x, weight, bias = tensors(24, 16, torch.float32)
    for view in (x[:, :1], x.transpose(0, 1), x[::2]):
        assert_close(onednn.product(view, onednn.pack(weight), bias), functional.linear(view, weight, bias))
