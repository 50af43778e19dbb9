"""Exports of models, as the tests of ONNX make them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BERT_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class Call(torch.nn.Module):
    """One method of a model as a module, which is what can be exported."""

    def __init__(self, module: torch.nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.call(*inputs)


def export(
    path: Path, call: Call, inputs: dict[str, torch.Tensor], output: str, dynamic: bool = True, data: bool = False
) -> None:
    """Writes an ONNX file; with `data`, weights in a file of their own beside it, as large models must have them."""
    axes = {name: {0: "batch"} | ({1: "tokens"} if name in BERT_INPUTS else {}) for name in inputs}
    settings: dict[str, Any] = {"dynamic_axes": axes} if dynamic else {}
    if data:
        settings = {"dynamic_shapes": (({0: "batch"},),)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            call.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamo=data,
            external_data=data,
            verbose=False,
            **settings,
        )
