"""CPU seconds of a server's processes: user and system time, by group."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable

import psutil

from benchmarks.lib.process import descendants

REPLICA = re.compile(r"ray::ServeReplica:[^:]*:(\w+)")
Group = Callable[[psutil.Process], str]


class CpuMeter:
    """What a process and its descendants spend between two looks.

    Args:
        pid: the first process.
        group: names the group of a process.
    """

    def __init__(self, pid: int, group: Group = lambda _: "server") -> None:
        self._pid = pid
        self._group = group
        self._seen = self._look()

    def lap(self) -> dict[str, float]:
        """CPU seconds by group since the last lap. A process that ended in between is left out."""
        seen = self._look()
        spent: dict[str, float] = defaultdict(float)
        for pid, (group, seconds) in seen.items():
            spent[group] += seconds - self._seen.get(pid, ("", 0.0))[1]
        self._seen = seen
        return dict(spent)

    def _look(self) -> dict[int, tuple[str, float]]:
        seen = {}
        for process in descendants(self._pid):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                times = process.cpu_times()
                seen[process.pid] = (self._group(process), times.user + times.system)
        return seen


def ray_group(process: psutil.Process) -> str:
    """The part of a Ray Serve graph that a process belongs to; `ray` is everything that is not ours.

    A replica's title is `ray::ServeReplica:APPLICATION:DEPLOYMENT`, with the running method at times.
    """
    title = " ".join(process.cmdline())
    replica = REPLICA.match(title)
    if replica is not None:
        return replica[1].lower()
    return "proxy" if "proxy" in title.lower() else "ray"
