"""A steady load whose right answers are known: each reply is compared with vectors that were computed beforehand.

Every request asks for another selection in another order, so a vector in the wrong place, or the reply to another
request, is noticed.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.lib.target import Target

TOLERANCE = 1e-4
"""Largest difference of a component that still counts as the same vector: batches of other sizes round differently."""
TIMEOUT_S = 60.0

Outcome = Literal["right", "wrong", "lost", "refused", "503", "500", "other"]
"""right: the right vectors, in order. wrong: other vectors, or an error for a good item. lost: the connection broke, or
no reply came in time. refused: no connection could be made, so nothing was sent. The others are HTTP statuses."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request.

    Args:
        sent: when, by time.monotonic().
        seconds: until its answer or its failure.
        outcome: see `Outcome`.
        kind: of its question.
        note: what went wrong.
    """

    sent: float
    seconds: float
    outcome: Outcome
    kind: str
    note: str = ""

    @property
    def ended(self) -> float:
        """When its answer or its failure came, by time.monotonic()."""
        return self.sent + self.seconds


@dataclass(frozen=True, slots=True)
class Question:
    """What clients ask for, with the right answers.

    Args:
        kind: its name.
        target: the server that is asked.
        items: from which requests choose.
        count: items of one request.
        vectors: the right answers: float32 (len(items), dimensions).
    """

    kind: str
    target: Target
    items: Sequence[str]
    count: int
    vectors: np.ndarray


def question(kind: str, target: Target, items: Sequence[str], count: int) -> Question:
    """A question, with the answers that the server gives now, while it is idle.

    Raises:
        ValueError: two items have the same vector, so their order could not be checked; or an item has none.
    """
    reply = httpx.post(target.url, content=target.pack(items), headers=dict(target.headers), timeout=TIMEOUT_S)
    reply.raise_for_status()
    vectors = target.unpack(reply.content)
    for i, vector in enumerate(vectors[:-1]):
        if np.abs(vectors[i + 1 :] - vector).max(axis=1).min() < 10 * TOLERANCE:
            raise ValueError(f"{items[i]!r} and a later item of {kind!r} have the same vector")
    return Question(kind, target, items, count, vectors)


def elsewhere(asked: Question, server: str) -> Question:
    """The same question for the server at another address."""
    path = urlsplit(asked.target.url).path
    return replace(asked, target=replace(asked.target, url=f"{server}{path}"))


class KnownAnswers:
    """Clients that ask while the `with` block lasts, each on a connection of its own. No client tries again.

    Args:
        questions: asked in turn.
        clients: threads.
        period_s: seconds between the starts of two requests of one client, if the answers come in time.
    """

    def __init__(self, questions: Sequence[Question], clients: int = 4, period_s: float = 0.4) -> None:
        self.replies: list[Reply] = []
        self._questions = questions
        self._period_s = period_s
        self._waiting: dict[int, float] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> KnownAnswers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def since(self, moment: float) -> list[Reply]:
        """Replies to requests that ended later than `moment`."""
        return [reply for reply in list(self.replies) if reply.ended > moment]

    def longest_wait(self) -> float:
        """Seconds for which the oldest request without an answer has waited; 0 if there is none."""
        return time.monotonic() - min(list(self._waiting.values()), default=time.monotonic())

    def _ask(self, number: int) -> None:
        rng = random.Random(number)
        due = time.monotonic() + self._period_s * number / len(self._threads)
        turn = number
        with httpx.Client(timeout=TIMEOUT_S) as http:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                asked = self._questions[turn % len(self._questions)]
                chosen = rng.sample(range(len(asked.items)), asked.count)
                self._waiting[number] = time.monotonic()
                self.replies.append(_reply(http, asked, chosen))
                del self._waiting[number]
                turn += 1
                due = max(due + self._period_s, time.monotonic())


def counts(replies: Sequence[Reply]) -> Mapping[str, int]:
    """How many requests were `sent`, and how many of them had each outcome."""
    return {"sent": len(replies), **Counter(reply.outcome for reply in replies)}


def failures(replies: Sequence[Reply]) -> list[str]:
    """A sentence about each reply that was not right."""
    return [f"{reply.kind} {reply.outcome}: {reply.note}" for reply in replies if reply.outcome != "right"]


def _reply(http: httpx.Client, asked: Question, chosen: Sequence[int]) -> Reply:
    body = asked.target.pack([asked.items[i] for i in chosen])
    sent = time.monotonic()
    outcome, note = _outcome(http, asked, body, chosen)
    return Reply(sent, time.monotonic() - sent, outcome, asked.kind, note)


def _outcome(http: httpx.Client, asked: Question, body: bytes, chosen: Sequence[int]) -> tuple[Outcome, str]:
    try:
        reply = http.post(asked.target.url, content=body, headers=dict(asked.target.headers))
    except httpx.ConnectError as error:
        return "refused", repr(error)
    except httpx.TransportError as error:
        return "lost", repr(error)
    match reply.status_code:
        case 200:
            return _checked(asked, reply.content, chosen)
        case 503:
            return "503", reply.text[:200]
        case 500:
            return "500", reply.text[:200]
    return "other", f"{reply.status_code} {reply.text[:200]}"


def _checked(asked: Question, body: bytes, chosen: Sequence[int]) -> tuple[Outcome, str]:
    try:
        rows = asked.target.unpack(body)
    except ValueError as error:
        return "wrong", str(error)
    expected = asked.vectors[list(chosen)]
    if rows.shape != expected.shape:
        return "wrong", f"{rows.shape} instead of {expected.shape}"
    difference = float(np.abs(rows - expected).max())
    return ("right", "") if difference <= TOLERANCE else ("wrong", f"off by {difference:.2g}")
