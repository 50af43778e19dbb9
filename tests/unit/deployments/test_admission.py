"""How an ingress counts what it holds, and what it refuses."""

import contextlib
from collections.abc import Iterator

import pytest

from deployments.ingress.admission import Admission, Load, of_items
from embedding.errors import Fault, RequestError


def test_shares_are_counted_and_given_back() -> None:
    admission = Admission(10, "contents")
    with admission.share() as first:
        first.add(6)
        with admission.share() as second:
            second.add(4)
            assert admission.held == 10
            with pytest.raises(RequestError) as refused:
                second.add(1)
            assert refused.value.fault is Fault.OVERLOADED
            assert "busy with 10 contents" in refused.value.message
        assert admission.held == 6
    assert admission.held == 0


def test_what_is_larger_than_all_is_taken_alone() -> None:
    admission = Admission(10, "contents")
    with admission.share() as alone, admission.share() as other:
        alone.add(8)
        alone.add(8)
        with pytest.raises(RequestError):
            other.add(1)
    with admission.share() as other:
        other.add(1)


def test_a_failure_gives_the_share_back() -> None:
    admission = Admission(10, "contents")
    with contextlib.suppress(ZeroDivisionError), admission.share() as share:
        share.add(10)
        raise ZeroDivisionError
    assert admission.held == 0


@contextlib.contextmanager
def loaded(work: Admission, downloads: Admission) -> Iterator[Load]:
    with work.share() as mine, downloads.share() as waiting, Admission(1, "bytes").share() as expanded:
        yield Load(mine, waiting, expanded)


def test_waiting_items_are_not_work_until_they_arrive() -> None:
    work, downloads = of_items(128, "contents", 16), of_items(1024, "waiting contents", 16)
    with loaded(work, downloads) as first, loaded(work, downloads) as second:
        first.admit(100)
        with pytest.raises(RequestError):
            second.admit(100)
        first.change(working=10, waiting=90)
        assert (work.held, downloads.held) == (10, 90)
        second.admit(100)
        # Over the limit, since nothing that has arrived can be refused.
        first.change(working=100, waiting=0)
        assert (work.held, downloads.held) == (200, 0)
        with loaded(work, downloads) as third, pytest.raises(RequestError):
            third.admit(1)
    assert (work.held, downloads.held) == (0, 0)


def test_items_beyond_the_download_limit_count_as_work() -> None:
    work, downloads = of_items(128, "contents", 16), of_items(50, "waiting contents", 16)
    with loaded(work, downloads) as first, loaded(work, downloads) as second:
        first.admit(100)
        first.change(working=0, waiting=100)
        assert (work.held, downloads.held) == (50, 50)
        second.admit(60)
        second.change(working=0, waiting=60)
        assert (work.held, downloads.held) == (110, 50)


def test_a_share_is_reserved_for_small_requests() -> None:
    work, downloads = of_items(512, "contents", 32), of_items(512, "waiting contents", 32)
    with loaded(work, downloads) as large, loaded(work, downloads) as small, loaded(work, downloads) as medium:
        large.admit(10_000)
        with pytest.raises(RequestError):
            medium.admit(33)
        small.admit(32)
        large.change(working=0, waiting=10_000)
        small.change(working=0, waiting=32)
        assert downloads.held == 448 + 32
