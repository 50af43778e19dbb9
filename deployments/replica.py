"""What every deployment's replica needs: closed settings, and its share of the machine."""

import os
import threading

import ray
from pydantic import BaseModel, ConfigDict

LEAST_PRIORITY = 19
METRICS_PERIOD_S = 10.0
"""How often a replica tells Ray's metrics what it holds."""


class Settings(BaseModel):
    """A closed group of settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def be_nice() -> None:
    """Gives the calling thread the lowest priority: it takes what cores others leave, and the kernel hardly lets it run
    on when another wakes up.

    Ray starts its workers at 15 unless RAY_worker_niceness says otherwise, and only root may go back from there: any
    number below 19 could be a higher priority than before, or an error. Not for threads of a replica that also serves
    searches: one that holds Python's lock and gets no core holds up the others.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)


def assigned_cpus() -> int:
    """CPUs that Ray gave this replica, at least one; a fraction counts as one."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, min(int(cpus), os.cpu_count() or 1))
