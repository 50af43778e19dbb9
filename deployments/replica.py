"""What every deployment's replica needs: closed settings, and its share of the machine."""

import os

import ray
from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A closed group of settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def assigned_cpus() -> int:
    """CPUs that Ray gave this replica, at least one; a fraction counts as one."""
    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
    return max(1, min(int(cpus), os.cpu_count() or 1))
