"""What a request becomes is known before it is made."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from deployments.ingress.calls import run_concurrently, split_by_size
from embedding.errors import Fault, ItemError, RequestError
from embedding.memory_estimate import Expansion, check_expansion
from embedding.protocol import Vectors, encode_parts, encode_result
from embedding.text.chunks import MAX_EXPANDED_BYTES, chunk_text, chunk_texts, chunks_cost

MEBIBYTE = 2**20


def cost(contents: list[str], prefix: str, dimensions: int) -> int:
    return chunks_cost(contents, Expansion(prefix, dimensions))


@pytest.mark.parametrize(
    ("contents", "prefix", "dimensions"),
    [
        (["x"] * 8000, "p" * 100_000, 32),
        (["x"] * 8000, "\u00fc" * 10_000, 32),
        (["x"] * 2000, "", 65_536),
    ],
    ids=["prefix", "umlauts", "vectors"],
)
def test_what_a_small_body_blows_up_is_refused(contents: list[str], prefix: str, dimensions: int) -> None:
    with pytest.raises(RequestError) as refused:
        check_expansion(cost(contents, prefix, dimensions), MAX_EXPANDED_BYTES)
    assert refused.value.fault is Fault.TOO_LARGE
    assert "256 MiB" in refused.value.message


@pytest.mark.parametrize(
    ("contents", "prefix", "dimensions"),
    [
        (["a text of some words, as there are many"] * 16_384, "passage: ", 1024),
        (["x" * 1_000_000], "query: ", 4096),
        (["word " * 500] * 2048, "p" * 500, 1536),
    ],
    ids=["16,384 contents", "a long one", "documents"],
)
def test_no_sensible_request_comes_near_the_limit(contents: list[str], prefix: str, dimensions: int) -> None:
    check_expansion(cost(contents, prefix, dimensions), MAX_EXPANDED_BYTES)


def test_documents_in_chunks_of_a_sentence_are_far_from_the_limit() -> None:
    document = "This is a sentence of a usual length, as documents have them in their paragraphs. " * 60
    results = chunk_texts([document] * 128, "sentence", 2, 1, Expansion("passage: ", 1024))
    assert [len(chunks) for chunks in results if isinstance(chunks, list)] == [59] * 128


@pytest.mark.parametrize(
    ("content", "method", "length", "overlap"),
    [
        ("ab" * 50_000, "character", 1, 0),
        ("ab" * 50_000, "character", 5000, 4999),
        ("a " * 50_000, "word", 1, 0),
        ("\n\n".join("ab" * 50_000), "passage", 1, 0),
    ],
    ids=["characters", "overlap", "words", "passages"],
)
def test_chunks_are_refused_before_they_are_made(content: str, method: Any, length: int, overlap: int) -> None:
    chunk_text("a b", "word", 1, 0)  # loads NLTK
    budget = 20 * MEBIBYTE
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="more than the 20 MiB that are left") as refused:
            chunk_text(content, method, length, overlap, Expansion("", 32), budget)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused.value.fault is Fault.REFUSED
    assert peak < budget


def test_chunks_cost_no_less_than_they_take() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        chunks = chunk_text("äb" * 50_000, "character", 3, 2)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < chunks_cost(chunks, Expansion("", 0))


def test_items_share_the_memory_budget() -> None:
    one = chunks_cost(chunk_text("ab" * 500, "character", 1, 0), Expansion("p", 8))
    results = chunk_texts(["ab" * 500] * 3 + ["a"], "character", 1, 0, Expansion("p", 8), 2 * one + one // 2)
    assert [isinstance(item, ItemError) for item in results] == [False, False, True, False]


# --- Calls ---


def test_parts_keep_to_both_limits() -> None:
    assert list(split_by_size([1] * 5, 2, 100)) == [(slice(0, 2), 2), (slice(2, 4), 2), (slice(4, 5), 1)]
    assert list(split_by_size([5, 5, 5, 20, 1], 10, 12)) == [
        (slice(0, 2), 10),
        (slice(2, 3), 5),
        (slice(3, 4), 20),
        (slice(4, 5), 1),
    ]
    assert list(split_by_size([], 2, 100)) == []


def test_what_runs_together_keeps_to_the_limit_and_its_order() -> None:
    running, most = 0, 0

    def work(index: int) -> tuple[int, Callable[[], Awaitable[int]]]:
        async def begin() -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001 * (index % 3))
            running -= 1
            return index

        return 10, begin

    assert asyncio.run(run_concurrently(map(work, range(50)), 35)) == list(range(50))
    assert most == 3
    assert asyncio.run(run_concurrently(map(work, range(5)), 5)) == list(range(5))


def test_the_first_failure_ends_the_others_also_those_that_have_not_begun() -> None:
    begun: list[int] = []

    def work(index: int) -> tuple[int, Callable[[], Awaitable[None]]]:
        async def begin() -> None:
            begun.append(index)
            await asyncio.sleep(0 if index == 1 else 10)
            raise ValueError(index)

        return 10, begin

    with pytest.raises(ValueError, match="1"):
        asyncio.run(asyncio.wait_for(run_concurrently(map(work, range(50)), 30), 5))
    assert len(begun) <= 4


# --- The reply ---


def results(count: int, dimensions: int) -> list[Vectors | ItemError]:
    rows = np.random.default_rng(1).normal(size=(count, dimensions)).astype(np.float32)
    return [[(f"key {i}", row)] if i % 7 else ItemError(f"error {i}") for i, row in enumerate(rows)]


def test_a_reply_in_parts_is_the_reply() -> None:
    whole = encode_result(results(3000, 512))
    parts = encode_parts(results(3000, 512))
    assert b"".join(parts) == whole
    assert len(parts) > 10
    assert max(map(len, parts)) < MEBIBYTE


def test_a_reply_is_never_there_twice() -> None:
    items: list[Any] = [[(str(i), np.zeros(4096, np.float32))] for i in range(2000)]
    tracemalloc.start()
    try:
        parts = encode_parts(items)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not items
    assert peak < 1.2 * sum(map(len, parts))
