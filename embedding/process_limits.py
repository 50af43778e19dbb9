"""Resource limits (memory, CPU time, file size) that a process sets for itself before it handles untrusted input.

Linux only: it uses setrlimit and /proc.
"""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path


def confine(memory_bytes: int, cpu_s: float, file_bytes: int | None = None) -> None:
    """Limits the calling process. The limits cannot be raised again, so this is for worker processes only.

    An allocation beyond the limit fails with MemoryError, or with another exception of the library that allocates. When
    the CPU time is used up, the kernel sends SIGXCPU, and SIGKILL a second later. No core is dumped.

    Args:
        memory_bytes: what it may allocate in addition to what it holds now.
        cpu_s: CPU time of all its threads, in addition to what they have spent; rounded up to whole seconds.
        file_bytes: maximum size of a file that it writes; None = no limit.
    """
    data = _data_bytes() + memory_bytes
    _lower(resource.RLIMIT_DATA, data, data)
    spent = math.ceil(time.process_time() + cpu_s)
    _lower(resource.RLIMIT_CPU, spent, spent + 1)
    _lower(resource.RLIMIT_CORE, 0, 0)
    if file_bytes is not None:
        _lower(resource.RLIMIT_FSIZE, file_bytes, file_bytes)


def _lower(kind: int, soft: int, hard: int) -> None:
    _, hard_limit = resource.getrlimit(kind)
    if hard_limit != resource.RLIM_INFINITY:
        soft, hard = min(soft, hard_limit), min(hard, hard_limit)
    resource.setrlimit(kind, (soft, hard))


def _data_bytes() -> int:
    """The value that RLIMIT_DATA limits: private writable memory in bytes, whether it has been touched or not."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmData")
