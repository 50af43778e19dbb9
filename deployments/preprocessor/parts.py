"""What an ingress sends to a preprocessor with a chunk, and the parts in which the answer comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray import ObjectRef

from embedding.errors import ItemError


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """How the URLs of one chunk are downloaded.

    Args:
        timeout_ms: of each download, from start to end.
        headers: sent with each download.
        request: name of the request to which the chunk belongs.
        threads: how many of the request's concurrent transfers this chunk may use.
        keeps_threads: true if no chunk is left to be sent that could take these transfers. When this chunk is done,
            they then pass to the request's other chunks at the same preprocessor.
        within_s: seconds after which an item that still waits becomes an error; None = no limit.
    """

    timeout_ms: int
    headers: Mapping[str, str] | None
    request: str
    threads: int = 1
    keeps_threads: bool = False
    within_s: float | None = None


class Part(NamedTuple):
    """Items of a chunk that became ready at the same time."""

    indices: list[int]
    """Positions in the chunk of the pictures in `pixels`, in the same order."""
    pixels: ObjectRef[Any] | None
    """Reference to uint8 (n, 3, height, width); None if there are no pictures."""
    errors: dict[int, ItemError]
    """By position in the chunk."""
    waiting: int
    """Items of the chunk that still wait for their downloads."""
