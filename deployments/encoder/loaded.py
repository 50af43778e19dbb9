"""What an encoder says of the models that it has loaded, in a message of bounded size: gRPC takes at most 4 MiB."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedding.models.cache import CacheStats
from embedding.models.spec import ModelInfo
from embedding.shown import without_credentials

MESSAGE_BYTES = 3_000_000
_INFO_BYTES = 1000
"""Of a model's description without its texts."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one encoder has loaded.

    Args:
        replica: Serve's id of the replica, as in its log's name and in Ray's dashboard.
        node: Ray's id of its node.
        stats: of its model cache.
        models: least recently used first.
    """

    replica: str
    node: str
    stats: CacheStats
    models: list[ModelInfo]


def in_one_message(infos: Sequence[ModelInfo]) -> list[ModelInfo]:
    """Descriptions that are fit to be sent: long properties shortened, and of very many or very long ones the last,
    which are the most recently used."""
    fitting: list[ModelInfo] = []
    room = MESSAGE_BYTES
    for info in map(_shortened, reversed(infos)):
        room -= _INFO_BYTES + sum(len(text.encode()) for text in (info.name, info.key, info.properties_json))
        if room < 0:
            break
        fitting.append(info)
    return fitting[::-1]


def _shortened(info: ModelInfo) -> ModelInfo:
    return info.shortened


def shown_names(info: ModelInfo) -> tuple[str, str]:
    """A model's name and its key, `name||hash`, as they are listed: a name may be a URL."""
    name, mark, digest = info.key.rpartition("||")
    return without_credentials(info.name), f"{without_credentials(name)}{mark}{digest}"
