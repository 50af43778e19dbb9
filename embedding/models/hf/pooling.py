"""Pooling: one vector of a text from the vectors of its tokens. Also reads how a repository configures it."""

from __future__ import annotations

from typing import Literal

import torch

from embedding.models.files.failure import unloadable
from embedding.models.files.json_file import JsonMap
from embedding.shown import shown

Pooling = Literal["mean", "cls"]


def pool(hidden: torch.Tensor, mask: torch.Tensor, method: Pooling) -> torch.Tensor:
    """One vector for each text, (n, width), from those of its tokens, (n, tokens, width); mask is (n, tokens)."""
    if method == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def pooling_mode(given: JsonMap, name: str = "1_Pooling/config.json") -> Pooling:
    """The pooling that a sentence-transformers config asks for; mean if it asks for none.

    Raises:
        RequestError: REFUSED: another mode, or several at once, whose vectors sentence-transformers puts side by side.
    """
    flags = {key: value for key, value in given.items() if key.startswith("pooling_mode_")}
    if unfit := sorted(key for key, value in flags.items() if not isinstance(value, bool)):
        raise unloadable(f"{name}: {shown(unfit[0])} is neither true nor false")
    modes = {_mode(key) for key, value in flags.items() if value}
    if (named := given.get("pooling_mode")) is not None:
        modes |= {str(mode) for mode in (named if isinstance(named, list) else [named])}
    if not modes and flags.get("pooling_mode_mean_tokens", True):
        return "mean"
    if modes == {"cls"}:
        return "cls"
    if modes == {"mean"}:
        return "mean"
    said = shown(" and ".join(sorted(modes)) or "none of the modes")
    raise unloadable(
        f"{name} says pooling by {said}, which is not served; served are mean and cls: `poolingMethod` in "
        "modelProperties says which to take in its place (Marqo takes cls where that is among them, else mean)"
    )


def _mode(flag: str) -> str:
    """`pooling_mode_mean_tokens` is the mode `mean`."""
    return flag.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
