"""What one message between replicas holds: gRPC takes no more than 4 MiB."""

from collections.abc import Sequence

from embedding.models.spec import ModelInfo

MESSAGE_BYTES = 3_000_000
_INFO_BYTES = 1000
"""Of a model's description without its texts."""


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
