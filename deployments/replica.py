"""What every deployment's replica needs: closed settings, and its share of the machine."""

import os
import threading

import ray
from pydantic import BaseModel, ConfigDict

BULK_NICENESS = 10


class Settings(BaseModel):
    """A closed group of settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def be_nice() -> None:
    """Lowers the priority of the calling thread and of the threads that it starts from now on.

    For replicas that do bulk work only: they leave the cores to searches, and take all that is left. Not for single
    threads of a replica that also serves searches: one that holds Python's lock and gets no core holds up the others.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)


def assigned_cpus() -> int:
    """CPUs that Ray gave this replica, at least one; a fraction counts as one."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, min(int(cpus), os.cpu_count() or 1))
