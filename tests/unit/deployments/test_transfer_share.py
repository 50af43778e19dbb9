"""How the transfers of one request are divided among its calls, and put together again where several arrive."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack

import pytest

from deployments.ingress.transfer_share import ThreadShares
from deployments.preprocessor.parts import DownloadOptions
from deployments.preprocessor.transfer_pools import TransferPools
from tests.support.clock import run_without_waiting


@pytest.mark.parametrize(
    ("threads", "calls", "at_once", "shares"),
    [
        (20, 4, 13, [5, 5, 5, 5]),
        (20, 40, 13, [2] * 7 + [1] * 6),
        (20, 1, 13, [20]),
        (3, 40, 13, [1, 1, 1]),
        (1, 4, 13, [1]),
        (20, 4, 0, [20]),
    ],
)
def test_calls_at_a_time_share_all_of_them(threads: int, calls: int, at_once: int, shares: list[int]) -> None:
    async def take() -> None:
        divided = ThreadShares(threads, calls, at_once)
        async with AsyncExitStack() as stack:
            taken = [await stack.enter_async_context(divided.share()) for _ in shares]
            assert [each.count for each in taken] == shares
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3600):
                    await stack.enter_async_context(divided.share())
        async with asyncio.timeout(1), divided.share(again=True):
            pass

    run_without_waiting(take())


def test_threads_that_no_later_call_takes_over_are_kept() -> None:
    async def take() -> None:
        divided = ThreadShares(2, 3, 13)
        kept = []
        for _ in range(3):
            async with divided.share() as threads:
                kept.append(threads.kept)
            async with divided.share(again=True) as threads:
                assert threads.kept is kept[-1]
        assert kept == [False, True, True]

    asyncio.run(take())


def test_calls_of_one_request_have_their_threads_in_common() -> None:
    pools = TransferPools()

    def terms(threads: int, kept: bool = False, request: str = "a") -> DownloadOptions:
        return DownloadOptions(3000, None, request, threads, kept)

    with pools.joined(terms(5)) as alone, pools.joined(terms(7, request="b")) as other:
        assert (alone(), other()) == (5, 7)
        with ExitStack() as stack:
            assert stack.enter_context(pools.joined(terms(5, kept=True)))() == 10
            assert alone() == 10
        with pools.joined(terms(3)) as with_kept:
            assert with_kept() == 13
        with pools.joined(terms(2)) as without_passed_on:
            assert without_passed_on() == alone() == 12
    with pools.joined(terms(5)) as again:
        assert again() == 5
