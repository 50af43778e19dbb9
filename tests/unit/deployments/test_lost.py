"""By which errors Ray tells that a process is gone, and what clients are told then."""

import asyncio
import inspect
from itertools import pairwise

import grpc
import pytest
from ray import exceptions
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.ingress.retry import as_request_error, is_lost, retried
from embedding.errors import Fault, RequestError
from tests.support.clock import run_without_waiting

NOT_LOST = {
    "TaskCancelledError",  # by the caller
    "RequestCancelledError",
    "CrossLanguageError",
    "RayTaskError",  # as its cause is
    "AuthenticationError",
    "UserCodeException",
    "RuntimeEnvSetupError",
    "AsyncioActorExit",
    "TaskPlacementGroupRemoved",
    "PendingCallsLimitExceeded",
    "ObjectRefStreamEndOfStreamError",
    "OufOfBandObjectRefSerializationException",
    "UnserializableException",
    "ActorAlreadyExistsError",
    "ActorHandleNotFoundError",
}


def made(kind: type[BaseException]) -> BaseException:
    """One of a kind, whatever its constructor wants."""
    return kind.__new__(kind)


def test_every_error_of_ray_is_known_to_be_one_or_the_other() -> None:
    """A release that brings more of them fails here: each is to be looked at."""
    kinds = {
        name: kind
        for name, kind in inspect.getmembers(exceptions, inspect.isclass)
        if issubclass(kind, exceptions.RayError) and kind is not exceptions.RayError
    }
    del kinds["RayTaskError"]
    assert len(kinds) > 30
    assert {name for name, kind in kinds.items() if not is_lost(made(kind))} == NOT_LOST & kinds.keys()


class Killed(exceptions.RayTaskError):
    """As Ray hands over what a call has raised within another."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def rpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "the connection ended")


LOST = [
    exceptions.OutOfMemoryError("killed by the memory monitor"),  # type: ignore[no-untyped-call]  # Ray's
    exceptions.WorkerCrashedError(),
    exceptions.NodeDiedError("gone"),  # type: ignore[no-untyped-call]  # Ray's
    exceptions.ActorUnavailableError("for now", b"0" * 16),
    Killed(exceptions.OwnerDiedError("00" * 28, None, "owner")),
    rpc_error(grpc.StatusCode.UNAVAILABLE),
    rpc_error(grpc.StatusCode.INTERNAL),
    RuntimeError("Unexpected error (StatusCode.UNAVAILABLE): Socket closed."),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_what_is_lost_is_tried_again_and_then_a_503(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.retry.PAUSE_S", 0)
    tries = 0

    async def work(failures: int) -> str:
        nonlocal tries
        tries += 1
        if tries <= failures:
            raise error
        return "done"

    assert asyncio.run(retried("work", lambda: work(3))) == "done"
    tries = 0
    with pytest.raises(RequestError) as refused:
        asyncio.run(retried("work", lambda: work(99)))
    assert refused.value.fault is Fault.LOST_REPLICA
    assert tries == 4
    assert as_request_error(error).fault is Fault.LOST_REPLICA


def test_there_is_a_pause_between_two_attempts_and_none_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.retry.PAUSE_S", 100)
    at_s: list[float] = []

    async def work() -> None:
        at_s.append(asyncio.get_running_loop().time())
        raise LOST[0]

    async def main() -> float:
        with pytest.raises(RequestError):
            await retried("work", work)
        return asyncio.get_running_loop().time() - at_s[-1]

    assert run_without_waiting(main()) < 100
    assert [round((after - before) / 100) for before, after in pairwise(at_s)] == [1, 2, 4]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret"),
        RuntimeError("secret"),
        Killed(KeyError("secret")),
        rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED),
        BackPressureError(1, 1),
        RayServeException("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_lost_is_not_tried_again(error: Exception) -> None:
    tries = 0

    async def work() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(type(error)):
        asyncio.run(retried("work", work))
    assert tries == 1
    told = as_request_error(error)
    assert told.fault is Fault.INTERNAL
    assert "secret" not in told.message
