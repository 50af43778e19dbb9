"""A pickle that does something when it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Harmful:
    """Leaves a trace.

    Args:
        trace: the file that is there afterwards.
    """

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)
