"""A request for vectors of pictures, and the progress of its items."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from functools import cached_property

from deployments.ingress.admission import Load
from deployments.ingress.transfer_share import DEFAULT_THREADS, Threads
from deployments.preprocessor.parts import DownloadOptions
from embedding.image_spec import ImageSpec
from embedding.memory_estimate import Expansion
from embedding.models.spec import ModelSpec
from embedding.protocol import ImageConfig, InferenceRequest
from embedding.text.chunks import chunks_cost

IN_FLIGHT_BYTES = 64 * 2**20
"""Limit of the items, pixels and arguments of one request's concurrent calls."""


@dataclass(frozen=True)
class ImageTask:
    """What all chunks of one request have in common.

    Args:
        request: the request.
        config: its preprocessing of pictures.
        spec: the model.
        image: how the model wants its pictures.
        deadline: when incomplete downloads are given up, by the event loop's clock.
    """

    request: InferenceRequest
    config: ImageConfig
    spec: ModelSpec
    image: ImageSpec
    deadline: float

    @cached_property
    def name(self) -> str:
        """A unique name of the request."""
        return uuid.uuid4().hex

    @cached_property
    def threads(self) -> int:
        """Limit of the request's concurrent transfers."""
        threads = self.config.download_thread_count or 0
        return threads if threads > 0 else DEFAULT_THREADS

    @cached_property
    def picture_bytes(self) -> int:
        """Bytes of the pixels of one picture."""
        height, width = self.image.size
        return 3 * height * width

    @cached_property
    def call_bytes(self) -> int:
        """Bytes of the arguments of each call, without its items."""
        headers = self.config.download_header or {}
        return self.spec.characters + sum(len(name) + len(value) for name, value in headers.items())

    @cached_property
    def _vector_bytes(self) -> int:
        return chunks_cost(self.request.contents, Expansion("", self.spec.dimensions))

    def expanded_bytes(self, working: int) -> int:
        """Bytes that the request needs: its vectors, its reply, and the pixels of its concurrent calls.

        Args:
            working: its items that are being worked on.
        """
        return self._vector_bytes + min(IN_FLIGHT_BYTES, working * self.picture_bytes)

    def download_options(self, threads: Threads) -> DownloadOptions:
        """The options for a chunk that is sent now."""
        config = self.config
        left = max(0.0, self.deadline - asyncio.get_running_loop().time())
        return DownloadOptions(
            config.download_timeout_ms, config.download_header, self.name, threads.count, threads.kept, left
        )


class Tally:
    """Counts the items of one request that are not sent yet, are worked on, wait for downloads, or are done.

    Args:
        task: the request.
        load: where the request is counted.
    """

    def __init__(self, task: ImageTask, load: Load) -> None:
        self._task = task
        self._load = load
        self._unfinished = self._unsent = len(task.request.contents)
        self._waiting = 0

    def change(self, sent: int = 0, waiting: int = 0, done: int = 0) -> None:
        """Adds to the numbers of items. While some wait for downloads, those that are not sent count as waiting too,
        since they queue for the places of the chunks that wait."""
        self._unsent -= sent
        self._waiting += waiting
        self._unfinished -= done
        idle = self._waiting + self._unsent if self._waiting else 0
        self._load.change(self._unfinished - idle, idle)
        self._load.expanded.change(self._task.expanded_bytes(self._unfinished - idle))
