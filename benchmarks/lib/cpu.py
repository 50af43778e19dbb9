"""CPU time of a server's processes, user and system, by group."""

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
    """CPU time of a process and its descendants between two laps.

    Args:
        pid: the first process.
        group: names the group of a process.
    """

    def __init__(self, pid: int, group: Group = lambda _: "server") -> None:
        self._pid = pid
        self._group = group
        self._seen = self._look()

    def lap(self) -> dict[str, float]:
        """CPU seconds by group since the last lap, without those of processes that have ended since."""
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
    """The deployment of a replica in lower case; `proxy` for HAProxy and what manages it; `ray` for all others.

    A replica's title is `ray::ServeReplica:APPLICATION:DEPLOYMENT`, at times with the running method.
    """
    title = " ".join(process.cmdline())
    replica = REPLICA.match(title)
    if replica is not None:
        return replica[1].lower()
    return "proxy" if "proxy" in title.lower() else "ray"
