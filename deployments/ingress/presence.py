"""Makes sure that a call by value ends if the machine of its replica is lost.

Such a call goes over gRPC. Once the replica has received it nothing more is sent, so the kernel does not learn that
the other machine is gone, and Serve does not end the calls of a replica that it has given up. (Ray ends calls by
reference.) A further request on the same connection is not acknowledged by a lost machine. So the connection ends after
RAY_grpc_client_keepalive_timeout_ms (operations/environment.py), and each call on it fails as UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import grpc
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RunningReplica

from deployments.ray_internals import goes_by_reference, grpc_channel, known_replicas

PERIOD_S = 5.0
"""Calls that take less than this, so nearly all, cost nothing."""
UNKNOWN_METHOD = "/ray.serve.ASGIService/Answer"

_asked: WeakKeyDictionary[RunningReplica, float] = WeakKeyDictionary()
"""When each replica was asked last; many calls may wait for one."""


async def reach(replica: RunningReplica, timeout_s: float) -> None:
    """Calls a method that no replica has: the replica must be reached to say so, and no request is counted for it.

    Raises:
        grpc.aio.AioRpcError: calls by value cannot reach it.
    """
    _asked[replica] = time.monotonic()
    call = grpc_channel(replica).unary_unary(UNKNOWN_METHOD)
    try:
        await call(b"", timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise


@contextmanager
def presence_checked(handle: DeploymentHandle[Any]) -> Iterator[None]:
    """While the context lasts, the replicas of a handle's deployment are reached every few seconds if its calls go by
    value.

    Args:
        handle: one that has been used.
    """
    loop = asyncio.get_running_loop()
    checks: list[asyncio.Task[None]] = []
    timer = loop.call_later(PERIOD_S, lambda: checks.append(loop.create_task(_reach_all(handle))))
    try:
        yield
    finally:
        timer.cancel()
        for check in checks:
            check.cancel()


async def _reach_all(handle: DeploymentHandle[Any]) -> None:
    if goes_by_reference(handle):
        return
    while True:
        since = time.monotonic() - PERIOD_S
        due = [replica for replica in known_replicas(handle) if _asked.get(replica, since) <= since]
        await asyncio.gather(*(reach(replica, PERIOD_S) for replica in due), return_exceptions=True)
        await asyncio.sleep(PERIOD_S)
