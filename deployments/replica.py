"""What the replicas of all deployments have in common: settings with a closed set of keys, and their CPUs."""

import os
import threading

import ray
from pydantic import BaseModel, ConfigDict

LEAST_PRIORITY = 19
METRICS_PERIOD_S = 1.0
"""Seconds between two reports of a replica's numbers to Ray, whose agents forget a gauge that two of their own reports
(of ten seconds) did not have: longer than those, and gauges would come and go."""


class Settings(BaseModel):
    """A closed group of settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def lower_priority() -> None:
    """Gives the calling thread the lowest scheduling priority (nice 19): it uses idle cores, and the kernel soon
    preempts it when another thread wakes up.

    Ray starts its workers at 15 unless RAY_worker_niceness says otherwise, and only root may lower the number again:
    any value below 19 could be a higher priority than before, or an error. Do not use it for threads of a replica that
    also serves searches: a thread that holds Python's lock and gets no core delays all others.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)


def assigned_cpus() -> int:
    """CPUs that Ray gave this replica, rounded down, at least one."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    return max(1, min(int(cpus), os.cpu_count() or 1))
