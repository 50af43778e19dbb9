"""A steady load whose right answers are known: each reply is compared with vectors that were computed beforehand.

Every request asks for a selection of its own, in an order of its own, so a vector in the wrong place, or the reply to
another request, is noticed.
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
"""Largest difference of a component that still counts as the same vector: batches of other sizes add up otherwise."""
TIMEOUT_S = 60.0

Outcome = Literal["right", "wrong", "lost", "refused", "503", "500", "other"]
"""right: the answer, in order. wrong: another answer, or an error for a good content. lost: the connection broke, or
nothing came in time. refused: no connection, so nothing was sent. The others are HTTP statuses."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request.

    Args:
        sent: when, by time.monotonic().
        seconds: until its answer or its failure.
        outcome: see above.
        kind: which question.
        note: what went wrong.
    """

    sent: float
    seconds: float
    outcome: Outcome
    kind: str
    note: str = ""

    @property
    def ended(self) -> float:
        return self.sent + self.seconds


@dataclass(frozen=True, slots=True)
class Question:
    """Args:
    kind: its name.
    target: whom to ask.
    contents: from which requests choose.
    count: contents of one request.
    vectors: the right answers: float32 (len(contents), dimensions).
    """

    kind: str
    target: Target
    contents: Sequence[str]
    count: int
    vectors: np.ndarray


def question(kind: str, target: Target, contents: Sequence[str], count: int) -> Question:
    """A question, with the answers that a quiet server gives.

    Raises:
        ValueError: two contents have the same vector, so their order could not be checked; or a content has none.
    """
    reply = httpx.post(target.url, content=target.pack(contents), headers=dict(target.headers), timeout=TIMEOUT_S)
    reply.raise_for_status()
    vectors = target.unpack(reply.content)
    for i, vector in enumerate(vectors[:-1]):
        if np.abs(vectors[i + 1 :] - vector).max(axis=1).min() < 10 * TOLERANCE:
            raise ValueError(f"{contents[i]!r} and a later content of {kind!r} have the same vector")
    return Question(kind, target, contents, count, vectors)


def elsewhere(asked: Question, server: str) -> Question:
    """The same question, put to another address of the server."""
    path = urlsplit(asked.target.url).path
    return replace(asked, target=replace(asked.target, url=f"{server}{path}"))


class KnownAnswers:
    """Clients that ask, each on a connection of its own, while the `with` block lasts. No client tries again.

    Args:
        questions: asked in turn.
        clients: threads.
        period_s: between the starts of two requests of one client, as long as the server keeps up.
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
                chosen = rng.sample(range(len(asked.contents)), asked.count)
                self._waiting[number] = time.monotonic()
                self.replies.append(_reply(http, asked, chosen))
                del self._waiting[number]
                turn += 1
                due = max(due + self._period_s, time.monotonic())


def counts(replies: Sequence[Reply]) -> Mapping[str, int]:
    """How many requests ended how, and how many there were."""
    return {"sent": len(replies), **Counter(reply.outcome for reply in replies)}


def failures(replies: Sequence[Reply]) -> list[str]:
    """Those that did not get their right answer, for people."""
    return [f"{reply.kind} {reply.outcome}: {reply.note}" for reply in replies if reply.outcome != "right"]


def _reply(http: httpx.Client, asked: Question, chosen: Sequence[int]) -> Reply:
    body = asked.target.pack([asked.contents[i] for i in chosen])
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


def _checked(asked: Question, content: bytes, chosen: Sequence[int]) -> tuple[Outcome, str]:
    try:
        rows = asked.target.unpack(content)
    except ValueError as error:
        return "wrong", str(error)
    expected = asked.vectors[list(chosen)]
    if rows.shape != expected.shape:
        return "wrong", f"{rows.shape} instead of {expected.shape}"
    difference = float(np.abs(rows - expected).max())
    return ("right", "") if difference <= TOLERANCE else ("wrong", f"off by {difference:.2g}")
