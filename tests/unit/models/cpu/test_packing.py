"""Layers that replace those of a model compute the same, hold its weights in its place, and give them back."""

import pytest
import torch

from embedding.models.cpu import linear
from embedding.models.cpu.capabilities import has_bf16
from embedding.models.cpu.linear import PackedLinear, packing_pays
from embedding.models.cpu.packing import Packing, bf16_nbytes, is_equivalent, replace_linear_layers
from embedding.models.fingerprint import Described, fingerprint


class Model(torch.nn.Module):
    """Layers of several shapes, one of which shares its weight with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 64)
        self.inner = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 64, bias=False))
        self.tied = torch.nn.Linear(64, 50, bias=False)
        self.tied.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.table(tokens)
        vectors: torch.Tensor = self.tied(hidden + self.inner(hidden)).mean(1)
        return vectors


@pytest.fixture
def model() -> Model:
    torch.manual_seed(1)
    return Model().requires_grad_(False)


@pytest.fixture(params=(True, False), ids=("packed", "plain"))
def pays(request: pytest.FixtureRequest) -> bool:
    """Whether packing pays: the choice of the machine's processor would leave one of the two untested."""
    return bool(request.param)


def packing_if(pays: bool, dtype: torch.dtype | None = None) -> Packing:
    if pays and dtype is not None and not has_bf16():
        pytest.skip("this processor has no bf16")
    return Packing(dtype, lambda *_: pays)


TOKENS = torch.arange(40).view(4, 10)


def test_layers_are_replaced_and_compute_the_same(model: Model, pays: bool) -> None:
    expected = model(TOKENS)
    packing = packing_if(pays)
    replace_linear_layers(model, packing)
    assert bool(packing) == pays
    assert type(model.inner[0]) is (PackedLinear if pays else torch.nn.Linear)
    assert type(model.tied) is torch.nn.Linear
    assert is_equivalent("layers", model, TOKENS, expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_weights_move_and_come_back(model: Model, pays: bool, dtype: torch.dtype | None) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text, nbytes = repr(model), Described(model).nbytes
    described, packing = Described(model), packing_if(pays, dtype)
    replace_linear_layers(model, packing)
    of_layers = 2 * 64 * 96 * 4
    assert described.nbytes == nbytes - (of_layers if pays or dtype else 0)
    assert packing.nbytes == (of_layers // 2 if dtype else of_layers if pays else 0)
    packing.undo()
    assert repr(model) == text
    assert {name: torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        before, True
    )


def test_the_fingerprint_does_not_change_with_the_way(model: Model, pays: bool) -> None:
    expected = fingerprint(model, {"a": "fact"})
    described, packing = Described(model), packing_if(pays)
    replace_linear_layers(model, packing)
    assert described.fingerprint({"a": "fact"}, packing.original) == expected


def test_bf16_takes_half_the_bytes_and_has_a_fingerprint_of_its_own(model: Model, pays: bool) -> None:
    expected, plain = model(TOKENS), fingerprint(model, {})
    estimated = bf16_nbytes(model)
    described, packing = Described(model), packing_if(pays, torch.bfloat16)
    replace_linear_layers(model, packing)
    given = model(TOKENS)
    assert given.dtype == torch.float32
    assert not torch.equal(given, expected)
    assert is_equivalent("layers", model, TOKENS, expected, torch.bfloat16)
    assert packing.nbytes == 2 * 64 * 96 * 2
    # The tied weight is counted as if it could be replaced.
    assert described.nbytes + packing.nbytes == estimated + model.tied.weight.nbytes // 2
    assert described.fingerprint({}, packing.original) != plain


def test_parts_of_one_weight(pays: bool) -> None:
    weight, bias, x = torch.nn.Parameter(torch.randn(30, 20), False), torch.randn(30), torch.randn(5, 20)
    before = weight.clone()
    packing = packing_if(pays)
    first, second = packing.split(weight, bias, [10, 20])
    assert torch.equal(packing.original(weight), before)
    given = torch.cat([first(x), second(x)], dim=1)
    torch.testing.assert_close(given, torch.nn.functional.linear(x, before, bias))
    assert weight.numel() == (0 if pays else 600)


def test_a_residual_keeps_its_type(pays: bool) -> None:
    weight, bias, x = torch.randn(16, 16), torch.randn(16), torch.randn(3, 16)
    residual, expected = torch.randn(3, 16), torch.nn.functional.linear(x, weight, bias)
    layer = packing_if(pays, torch.bfloat16).linear(weight, bias, residual=True)
    torch.testing.assert_close(layer.plus(x.bfloat16(), residual), residual + expected, atol=0.1, rtol=0)


def test_other_vectors_are_not_taken() -> None:
    expected = torch.ones(2, 8)
    assert not is_equivalent("a way", lambda _: expected + torch.arange(8), None, expected)
    assert not is_equivalent("a way", lambda _: expected[:, :7], None, expected)
    assert not is_equivalent("a way", lambda _: expected + torch.arange(8), None, expected, torch.bfloat16)


def test_vectors_that_are_not_finite_are_not_taken() -> None:
    expected = torch.ones(2, 8)
    assert not is_equivalent("a way", lambda _: expected * float("nan"), None, expected)


def test_the_quicker_way_is_measured_once_for_a_shape() -> None:
    linear._packing_pays.cache_clear()
    weight = torch.randn(128, 64)
    answers = {packing_pays(weight) for _ in range(3)}
    assert len(answers) == 1
    assert linear._packing_pays.cache_info().misses == 1
    assert not packing_pays(weight.half())
