"""Limits that a process sets itself before it does what a stranger's input may make endless. Linux."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path


def confine(memory_bytes: int, cpu_s: float, file_bytes: int | None = None) -> None:
    """Limits the calling process from now on. For a process of its own: there is no way back.

    Allocations beyond the limit fail (MemoryError, or what a library makes of it); the kernel kills the process with
    SIGXCPU, and a second later with SIGKILL, when its time is over. It dumps no core.

    Args:
        memory_bytes: what it may allocate beyond what it has now.
        cpu_s: CPU time of all its threads beyond what they have spent; whole seconds, rounded up.
        file_bytes: size of a file that it writes; None is no limit.
    """
    data = _data_bytes() + memory_bytes
    _lower(resource.RLIMIT_DATA, data, data)
    spent = math.ceil(time.process_time() + cpu_s)
    _lower(resource.RLIMIT_CPU, spent, spent + 1)
    _lower(resource.RLIMIT_CORE, 0, 0)
    if file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, file_bytes, file_bytes)


def _lower(what: int, soft: int, hard: int) -> None:
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(what, (soft, hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: private writable memory, whether it was touched or not."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmData")
