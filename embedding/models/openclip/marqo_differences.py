"""What Marqo's open_clip builds where the installed one builds something else.

An index must go on with the vectors that it holds, and those are of the release that Marqo 2.17 to 2.24 pins. The whole
comparison: `python -m benchmarks.open_clip_versions`; its outcome is in docs/MODELS.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg

logger = logging.getLogger("ray.serve")

VERSION = "2.24.0"
"""Of open_clip_torch, in Marqo 2.17 to 2.24."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which the installed open_clip departs from Marqo's.

    Args:
        tag: pretrained tag that it is about.
        architecture: the only one that it is about; None is each that has the tag.
        model: members of `model_cfg` as Marqo's release has them.
        weights: members of the tag's entry as Marqo's release has them.
        reason: why they differ.
    """

    tag: str
    reason: str
    architecture: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)

    def concerns(self, architecture: str, tag: str) -> bool:
        """Whether it is about a pretrained tag, in open_clip's spelling of it."""
        return tag == self.tag and self.architecture in (None, architecture)


DIFFERENCES = (
    Difference(
        tag="openai",
        model={"quick_gelu": True},
        reason=f"{VERSION} builds this tag's models from the weights alone, with OpenAI's activation; newer releases "
        "go by the architecture's config, which says GELU, and warn",
    ),
    Difference(
        tag="laion400m_e32",
        architecture="ViT-B-16-plus-240",
        weights={"hf_hub": ""},
        reason=f"{VERSION} knows the weights by their URL alone; newer releases prefer a hub repository, and name that "
        "of laion400m_e31",
    ),
)
"""All of them; a pretrained tag that is not here is built and prepared alike by both."""


def pretrained(architecture: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Marqo makes of a pretrained tag that open_clip knows.

    Returns:
        open_clip's `model_cfg`, and the tag's entry in its table: where the weights are, and the preprocessing.
    """
    config: dict[str, Any] = open_clip.get_model_config(architecture)
    entry: dict[str, Any] = dict(get_pretrained_cfg(architecture, tag))
    for difference in DIFFERENCES:
        if difference.concerns(architecture, tag.lower().replace("-", "_")):
            config, entry = {**config, **difference.model}, {**entry, **difference.weights}
    if entry.get("quick_gelu", False) and not config.get("quick_gelu", False):
        logger.warning(
            f"open_clip/{architecture}/{tag} was trained with QuickGELU and is served with GELU, as by Marqo; "
            f"open_clip/{architecture}-quickgelu/{tag} has other vectors, and better ones"
        )
    return config, entry
