"""An encoder's report of its loaded models, in a message of limited size: gRPC takes at most 4 MiB."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedding.models.cache_entry import CacheStats
from embedding.models.spec import ModelInfo
from embedding.shown import without_credentials

MESSAGE_BYTES = 3_000_000
_INFO_BYTES = 1000
"""Size of a model's description without its texts."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one encoder has loaded.

    Args:
        replica: Serve's id of the replica, as in the name of its log file and in Ray's dashboard.
        node: Ray's id of its node.
        stats: of its model cache.
        models: least recently used first.
    """

    replica: str
    node: str
    stats: CacheStats
    models: list[ModelInfo]


def in_one_message(infos: Sequence[ModelInfo]) -> list[ModelInfo]:
    """The descriptions that fit into one message: long properties are shortened, and if there are too many, only the
    last ones are kept, which are the most recently used."""
    fitting: list[ModelInfo] = []
    free_bytes = MESSAGE_BYTES
    for info in map(_shortened, reversed(infos)):
        free_bytes -= _INFO_BYTES + sum(len(text.encode()) for text in (info.name, info.key, info.properties_json))
        if free_bytes < 0:
            break
        fitting.append(info)
    return fitting[::-1]


def _shortened(info: ModelInfo) -> ModelInfo:
    return info.shortened


def shown_names(info: ModelInfo) -> tuple[str, str]:
    """A model's name and its key `name||hash`, without credentials: a name may be a URL."""
    name, mark, digest = info.key.rpartition("||")
    return without_credentials(info.name), f"{without_credentials(name)}{mark}{digest}"
