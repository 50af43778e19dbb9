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
    """Lowers the calling thread's priority: bulk work (decoding, batches of an index run) is to leave the cores to
    event loops and searches whenever those have something to do, and to take all that is left."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BULK_NICENESS)


def assigned_cpus() -> int:
    """CPUs that Ray gave this replica, at least one; a fraction counts as one."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, min(int(cpus), os.cpu_count() or 1))
