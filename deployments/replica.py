"""What every deployment's replica needs: closed settings, and its share of the machine."""

import os
import threading

import ray
from pydantic import BaseModel, ConfigDict

BULK_NICENESS = 10
LEAST_NICENESS = 19
"""The kernel lets such a thread run on for hardly any time when another wakes up."""


class Settings(BaseModel):
    """A closed group of settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def be_nice(niceness: int = BULK_NICENESS) -> None:
    """Lowers the priority of the calling thread and of the threads that it starts from now on.

    For replicas that do bulk work only: they leave the cores to searches, and take all that is left. Not for single
    threads of a replica that also serves searches: one that holds Python's lock and gets no core holds up the others.

    Args:
        niceness: as the kernel counts it, up to 19.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def assigned_cpus() -> int:
    """CPUs that Ray gave this replica, at least one; a fraction counts as one."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, min(int(cpus), os.cpu_count() or 1))
