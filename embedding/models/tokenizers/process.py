"""A transformers tokenizer in a process of its own, as whoever tokenises sees it."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from embedding.errors import Fault, RequestError
from embedding.models.files.failure import unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.tokenizers import frames
from embedding.models.tokenizers.own_thread import OwnThread
from embedding.models.tokenizers.worker import DONE, PANICKED
from embedding.models.tokenizers.zygote import zygote
from embedding.shown import shown

Mode = Literal["text", "clip", "clips"]
TokenRows = dict[str, list[list[int]]]
"""Rows of tokens, one for each text, by the name of the model's input."""

# CPU seconds of one call: a slow tokenizer on a slow core needs a tenth of it.
_CALL_S = 0.5
_CHARACTER_S = 5e-6
# A process gets its CPU time in the end, however many others want it; what sleeps instead is ended after this.
_PATIENCE_S = 60.0
_ENDED_WITHIN_S = 60.0
_MAX_ENDED = 2
_INPUTS = 4
_HEAD_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Loading:
    """How a tokenizer is loaded.

    Args:
        stage: makes the folder that transformers reads, for as long as it reads it.
        limit: tokens of a text, for the trial.
        trusted: whether the repository's own code may run.
        options: further arguments of `from_pretrained`.
        language: of the texts, for tokenizers that have languages.
    """

    stage: Callable[[], AbstractContextManager[Path]]
    limit: int
    trusted: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    language: str | None = None


class TokenizerProcess:
    """Loads a tokenizer and tries it. Calls of several threads go one after the other.

    Args:
        loading: what to load.
        settings: `tokenizer_bytes` and `tokenizer_load_s` of the operator.

    Raises:
        RequestError: REFUSED: it cannot be loaded within its limits, or fails on one of the trial's texts.
    """

    def __init__(self, loading: Loading, settings: LoadOptions) -> None:
        self._loading = loading
        self._settings = settings
        self._lock = threading.Lock()
        self._ended: deque[float] = deque(maxlen=_MAX_ENDED)
        self.thread = OwnThread()
        """Where calls belong: one of its own, since it may take its time, and nobody else is to wait for it."""
        self.pid, self._connection, self.facts = self._started()

    def __call__(self, texts: Sequence[str], most: int, mode: Mode) -> TokenRows:
        """Tokens of texts, at most `most` of each.

        Raises:
            RequestError: REFUSED: it failed, took too much time or memory, or has done so twice in the last minute.
        """
        characters = sum(map(len, texts))
        cpu_s = _CALL_S + _CHARACTER_S * characters
        request = {"texts": list(texts), "most": most, "mode": mode, "cpu_s": cpu_s}
        bound = 5 + 4 + _HEAD_BYTES + 24 * len(texts) + 8 * _INPUTS * len(texts) * most
        with self._lock:
            answer = self._asked(json.dumps(request).encode(), bound, _PATIENCE_S + cpu_s)
        status, spent_s, content = answer[:1], int.from_bytes(answer[1:5], "little") / 1e6, answer[5:]
        self.thread.spent(spent_s - _CHARACTER_S * characters)
        if status != DONE:
            raise RequestError(Fault.REFUSED, f"the model's tokenizer failed: {_text(content)}")
        return _unpacked(content, len(texts), most)

    def _asked(self, request: bytes, bound: int, timeout_s: float) -> bytes:
        if len(self._ended) == _MAX_ENDED and time.monotonic() - self._ended[0] < _ENDED_WITHIN_S:
            raise _gone("has been ended twice within a minute, and is not tried again yet")
        if self._is_dead():
            self.pid, self._connection, _ = self._started()
        try:
            frames.send(self._connection, request, timeout_s)
            answer = frames.receive(self._connection, bound, timeout_s)
        except (EOFError, OSError, frames.TooLong) as error:
            self._end()
            what = "gave too much" if isinstance(error, frames.TooLong) else "took too much time or memory, or crashed"
            raise _gone(f"{what} with these texts") from None
        if answer[:1] == PANICKED:
            self._end()  # who knows what state it is in
        return answer

    def _is_dead(self) -> bool:
        """Whether its process has ended since the last call: it never speaks unasked."""
        if self._connection.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def _end(self) -> None:
        self._ended.append(time.monotonic())
        self._connection.close()
        zygote.kill(self.pid)

    def _started(self) -> tuple[int, socket.socket, dict[str, Any]]:
        job = {
            "kind": "tokenizer",
            "trusted": self._loading.trusted,
            "options": dict(self._loading.options),
            "language": self._loading.language,
            "limit": self._loading.limit,
            "memory_bytes": self._settings.tokenizer_bytes,
            "load_s": self._settings.tokenizer_load_s,
        }
        with self._loading.stage() as folder:
            try:
                pid, connection = zygote.fork(job | {"folder": str(folder)})
            except ValueError as error:
                raise unloadable(f"its tokenizer cannot be used: {error}") from None
            try:
                answer = frames.receive(connection, _HEAD_BYTES, _PATIENCE_S + 4 * self._settings.tokenizer_load_s)
            except (EOFError, OSError, frames.TooLong):
                connection.close()
                zygote.kill(pid)
                raise unloadable(
                    f"its tokenizer cannot be used: loading and trying it crashed, or took more than "
                    f"{self._settings.tokenizer_load_s:.0f} s of CPU time or {self._settings.tokenizer_bytes} bytes "
                    "(settings tokenizer_load_s, tokenizer_bytes)"
                ) from None
        if answer[:1] != DONE:
            raise unloadable(f"its tokenizer cannot be used: {_text(answer[1:])}")
        return pid, connection, _facts(answer[1:])


def _facts(answer: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(answer)
    return facts


def _unpacked(answer: bytes, texts: int, most: int) -> TokenRows:
    length = int.from_bytes(answer[:4], "little")
    head = json.loads(answer[4 : 4 + length])
    names, lengths = head["names"], head["lengths"]
    numbers = np.frombuffer(answer[4 + length :], np.int64)
    if len(lengths) != texts or max(lengths, default=0) > most or len(numbers) != len(names) * sum(lengths):
        raise _gone("gave something else than tokens")
    rows = np.split(numbers, np.cumsum(lengths * len(names))[:-1]) if texts else []
    return {name: [row.tolist() for row in rows[i * texts : (i + 1) * texts]] for i, name in enumerate(names)}


def _text(content: bytes) -> str:
    return shown(content.decode(errors="replace"))


def _gone(what: str) -> RequestError:
    return RequestError(Fault.REFUSED, f"the model's tokenizer {what}")
