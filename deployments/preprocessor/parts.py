"""What ingresses ask preprocessors for, and the parts in which it comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ray import ObjectRef

from embedding.errors import ItemError


@dataclass(frozen=True, slots=True)
class DownloadTerms:
    """How the URLs of one chunk are to be downloaded.

    Args:
        timeout_ms: for each whole download.
        headers: sent with each download.
        request: names the request that the chunk belongs to.
        threads: of the request's transfers at a time, those that this chunk may have.
        keeps_threads: no other chunk takes these transfers over when this one is done: those that are at the same
            preprocessor may.
        within_s: seconds that are left, after which a content that still waits is an error; None = no end.
    """

    timeout_ms: int
    headers: Mapping[str, str] | None
    request: str
    threads: int = 1
    keeps_threads: bool = False
    within_s: float | None = None


class Part(NamedTuple):
    """What became ready together."""

    places: list[int]
    """In the chunk, of the pictures in `pixels`."""
    pixels: ObjectRef | None
    """Reference to uint8 (n, 3, height, width); None if there are no pictures."""
    errors: dict[int, ItemError]
    """By place in the chunk."""
    waiting: int
    """Contents of the chunk that still wait for their downloads."""
