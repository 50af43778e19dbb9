"""Calls in flight, as the router counts them by model and replica."""

from typing import cast

import pytest

from deployments import routing
from deployments.ray_internals import ReplicaID, RequestMetadata
from deployments.routing import CallsInFlight

# Any two different values will do.
PREFERRED, OTHER = cast(ReplicaID, "preferred"), cast(ReplicaID, "other")


def call(request: str, model: str) -> RequestMetadata:
    return RequestMetadata(request_id=request, internal_request_id=request, session_id=model)


def test_calls_are_counted_by_model_and_replica() -> None:
    calls = CallsInFlight()
    refused, hot, cold = call("1", "hot"), call("2", "hot"), call("3", "cold")
    for one in (refused, hot, cold):
        calls.chosen(one, PREFERRED)
    assert calls.share("hot", PREFERRED) == pytest.approx(2 / 3)
    # Refused by the preferred replica, and sent to another one before the refusal is noted.
    calls.chosen(refused, OTHER)
    calls.ended("1", PREFERRED)
    assert (calls.share("hot", PREFERRED), calls.share("hot", OTHER)) == (0.5, 1.0)
    for request, replica in (("1", OTHER), ("2", PREFERRED), ("2", PREFERRED), ("never", PREFERRED)):
        calls.ended(request, replica)
    assert (calls.share("hot", PREFERRED), calls.share("cold", PREFERRED), calls.share("hot", OTHER)) == (0.0, 1.0, 0.0)
    calls.forget(cold)
    calls.forget(cold)
    assert calls.share("cold", PREFERRED) == 0.0


def test_calls_of_one_request_are_counted_each() -> None:
    """Serve's id is the same for all of them."""
    calls = CallsInFlight()
    for one in [call("1", "hot") for _ in range(3)] + [call("2", "cold")]:
        calls.chosen(one, PREFERRED)
    for share in (2 / 3, 1 / 2, 0, 0):
        calls.ended("1", PREFERRED)
        assert calls.share("hot", PREFERRED) == pytest.approx(share)


def test_a_call_that_never_arrives_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "LONGEST_S", -1.0)
    calls = CallsInFlight()
    calls.chosen(call("1", "hot"), PREFERRED)
    calls.chosen(call("2", "cold"), PREFERRED)
    assert (calls.share("hot", PREFERRED), calls.share("cold", PREFERRED)) == (0.0, 1.0)
