"""Pretrained tags for which the installed open_clip builds another model than Marqo's pinned release.

Vectors must be comparable with those in existing indexes, which come from the release that Marqo 2.17 to 2.24 pins.
`python -m benchmarks.run open_clip_versions` compares all tags; docs/models.md has the result.
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
"""The release of open_clip_torch in Marqo 2.17 to 2.24."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the installed open_clip and Marqo's.

    Args:
        tag: the pretrained tag that it affects.
        architecture: the only architecture that it affects; None is all that have the tag.
        model: members of `model_cfg` in Marqo's release.
        weights: members of the tag's entry in Marqo's release.
        reason: why the two differ.
    """

    tag: str
    reason: str
    architecture: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)

    def concerns(self, architecture: str, tag: str) -> bool:
        """Whether it affects a pretrained tag, in open_clip's spelling."""
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
"""All differences. For other pretrained tags both releases build the same model and preprocessing."""


def pretrained(architecture: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config that Marqo's release has for a pretrained tag of open_clip.

    Returns:
        open_clip's `model_cfg`, and the tag's entry in its table, which has the weights' source and the preprocessing.
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
