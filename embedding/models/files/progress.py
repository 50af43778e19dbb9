"""Logs the progress of downloads: a line at the start, one every few seconds, one at the end."""

from __future__ import annotations

import logging
import time
from typing import Any

from tqdm import tqdm

from embedding.models.files.transfers import check_wanted

logger = logging.getLogger("ray.serve")

_EVERY_S = 5.0
_MIB = 2**20


class Progress:
    """The download of one file.

    Args:
        what: the file's name for the log; never with credentials.
        total: its size in bytes; None if unknown.
        done: bytes that an earlier attempt has downloaded.
    """

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self._what = what
        self._total = total
        self._done = done
        self._finished = False
        self._started = self._logged = time.monotonic()
        size = "unknown size" if total is None else f"{total / _MIB:.1f} MiB"
        logger.info(f"downloading {what} ({size}{f', from {done / _MIB:.1f} MiB on' if done else ''})")

    def advance(self, nbytes: int) -> None:
        """Counts bytes that have arrived.

        Raises:
            Stopped: the download is to end.
        """
        check_wanted()
        self._done += nbytes
        now = time.monotonic()
        if now - self._logged >= _EVERY_S:
            self._logged = now
            share = f", {self._done / self._total:.0%}" if self._total else ""
            logger.info(f"downloading {self._what}: {self._done / _MIB:.1f} MiB{share}")

    def finish(self) -> None:
        """Logs that the download is complete, if it is."""
        if self._finished or (self._total is not None and self._done < self._total):
            return
        self._finished = True
        elapsed = time.monotonic() - self._started
        logger.info(f"downloaded {self._what}: {self._done / _MIB:.1f} MiB in {elapsed:.1f} s")


class HubProgress(tqdm):  # type: ignore[type-arg]
    """A progress bar for huggingface_hub, which logs instead of drawing."""

    def __init__(self, label: str, **options: Any) -> None:
        self._progress = Progress(label, options.get("total"))
        super().__init__(**{**options, "disable": True})

    def update(self, n: float | None = 1) -> bool | None:
        """Counts bytes that have arrived; negative if a download starts over."""
        self._progress.advance(int(n or 0))
        return None

    def close(self) -> None:
        """Called at the end of a download, whether it succeeded or not."""
        self._progress.finish()
        super().close()
