"""The encoder as Serve deploys it, without its code: who builds or checks the graph needs no torch.

Each process that imports torch and open_clip takes seconds and half a gigabyte for it, and a start has two that never
encode: the launcher and the task in which Serve builds the application.
"""

from typing import Any

from ray import serve

from deployments.encoder.settings import BatchSettings
from deployments.ray_internals import by_import_path
from deployments.routing import MODEL_AFFINITY

DEFAULT_BATCHES = BatchSettings()

# No access log: the ingress writes one line for each request, and chunks are not requests. Beyond
# `max_ongoing_requests` Serve would queue calls in their order of arrival, and searches would wait behind indexing. The
# number is too high to be reached: the ingresses limit the work in flight, and `DeviceQueue` decides its order.
OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 100_000,
    "health_check_period_s": 10,
    "logging_config": {"enable_access_log": False},
    "request_router_config": MODEL_AFFINITY,
    # Without a `user_config` Serve does not call `reconfigure`, which preloads the models.
    "user_config": DEFAULT_BATCHES.model_dump(),
}
"""Of `serve.deployment`."""

Encoder = by_import_path(serve.deployment(name="Encoder", **OPTIONS), "deployments.encoder.encoder.EncoderReplica")
"""`deployments.encoder.encoder.Encoder`, which a replica imports when it starts."""
