"""A transformers tokenizer that runs in a subprocess: the caller's side."""

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
from embedding.models.tokenizers.dedicated_thread import DedicatedThread
from embedding.models.tokenizers.fork_server import fork_server
from embedding.models.tokenizers.worker import DONE, PANICKED
from embedding.shown import shown

Mode = Literal["text", "clip", "clips"]
TokenRows = dict[str, list[list[int]]]
"""Rows of tokens, one for each text, by the name of the model's input."""

# Limits of CPU time for one call, and for each character: ten times what a slow tokenizer needs on a slow core.
_CALL_CPU_S = 0.5
_CHARACTER_CPU_S = 5e-6
# Wall-clock seconds beyond the limit of CPU time, which a process that sleeps never reaches.
_TIMEOUT_S = 60.0
_KILL_WINDOW_S = 60.0
_MAX_KILLS = 2
_INPUTS = 4
_HEAD_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Loading:
    """How a tokenizer is loaded.

    Args:
        stage: opens a context with the folder that transformers reads.
        limit: tokens of a text, for the test run.
        trusted: whether the repository's own code may run.
        options: further arguments of `from_pretrained`.
        language: of the texts, for tokenizers that support several.
    """

    stage: Callable[[], AbstractContextManager[Path]]
    limit: int
    trusted: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    language: str | None = None


class TokenizerProcess:
    """Starts a subprocess that loads a tokenizer and tests it. Calls of several threads run one after the other.

    Args:
        loading: what to load.
        settings: `tokenizer_bytes` and `tokenizer_load_s` limit the subprocess.

    Raises:
        RequestError: REFUSED: it cannot be loaded within its limits, or fails on one of the test's texts.
    """

    def __init__(self, loading: Loading, settings: LoadOptions) -> None:
        self._loading = loading
        self._settings = settings
        self._lock = threading.Lock()
        self._kill_times: deque[float] = deque(maxlen=_MAX_KILLS)
        self.thread = DedicatedThread()
        """The executor in which calls must run: a dedicated thread, so that a slow tokenizer delays no other model."""
        self.pid, self._connection, self.facts = self._start()

    def __call__(self, texts: Sequence[str], max_tokens: int, mode: Mode) -> TokenRows:
        """Tokens of texts, at most `most` of each.

        Raises:
            RequestError: REFUSED: it failed, took too much time or memory, or was killed for that twice within the last
                minute.
        """
        characters = sum(map(len, texts))
        cpu_s = _CALL_CPU_S + _CHARACTER_CPU_S * characters
        request = {"texts": list(texts), "max_tokens": max_tokens, "mode": mode, "cpu_s": cpu_s}
        max_answer_bytes = 5 + 4 + _HEAD_BYTES + 24 * len(texts) + 8 * _INPUTS * len(texts) * max_tokens
        with self._lock:
            answer = self._exchange(json.dumps(request).encode(), max_answer_bytes, _TIMEOUT_S + cpu_s)
        status, spent_s, content = answer[:1], int.from_bytes(answer[1:5], "little") / 1e6, answer[5:]
        self.thread.spent(spent_s - _CHARACTER_CPU_S * characters)
        if status != DONE:
            raise RequestError(Fault.REFUSED, f"the model's tokenizer failed: {_text(content)}")
        return _unpacked(content, len(texts), max_tokens)

    def _exchange(self, request: bytes, max_answer_bytes: int, timeout_s: float) -> bytes:
        if len(self._kill_times) == _MAX_KILLS and time.monotonic() - self._kill_times[0] < _KILL_WINDOW_S:
            raise _failure("has been ended twice within a minute, and is not tried again yet")
        if self._is_dead():
            self.pid, self._connection, _ = self._start()
        try:
            frames.send(self._connection, request, timeout_s)
            answer = frames.receive(self._connection, max_answer_bytes, timeout_s)
        except (EOFError, OSError, frames.TooLong) as error:
            self._kill()
            what = "gave too much" if isinstance(error, frames.TooLong) else "took too much time or memory, or crashed"
            raise _failure(f"{what} with these texts") from None
        if answer[:1] == PANICKED:
            self._kill()  # after a panic its state is undefined
        return answer

    def _is_dead(self) -> bool:
        """Whether its process has ended since the last call: it sends answers only, so a readable socket is closed."""
        if self._connection.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def _kill(self) -> None:
        self._kill_times.append(time.monotonic())
        self._connection.close()
        fork_server.kill(self.pid)

    def _start(self) -> tuple[int, socket.socket, dict[str, Any]]:
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
                pid, connection = fork_server.fork(job | {"folder": str(folder)})
            except ValueError as error:
                raise unloadable(f"its tokenizer cannot be used: {error}") from None
            try:
                answer = frames.receive(connection, _HEAD_BYTES, _TIMEOUT_S + 4 * self._settings.tokenizer_load_s)
            except (EOFError, OSError, frames.TooLong):
                connection.close()
                fork_server.kill(pid)
                raise self._over_limits() from None
        if answer[:1] != DONE:
            reason = _text(answer[1:])
            # With little memory some releases of Python still get as far as to say so.
            raise (
                self._over_limits()
                if reason.startswith("MemoryError")
                else unloadable(f"its tokenizer cannot be used: {reason}")
            )
        return pid, connection, _facts(answer[1:])

    def _over_limits(self) -> RequestError:
        return unloadable(
            f"its tokenizer cannot be used: loading and trying it crashed, or took more than "
            f"{self._settings.tokenizer_load_s:.0f} s of CPU time or {self._settings.tokenizer_bytes} bytes "
            "(settings tokenizer_load_s, tokenizer_bytes)"
        )


def _facts(answer: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(answer)
    return facts


def _unpacked(answer: bytes, texts: int, max_tokens: int) -> TokenRows:
    length = int.from_bytes(answer[:4], "little")
    head = json.loads(answer[4 : 4 + length])
    names, lengths = head["names"], head["lengths"]
    numbers = np.frombuffer(answer[4 + length :], np.int64)
    if len(lengths) != texts or max(lengths, default=0) > max_tokens or len(numbers) != len(names) * sum(lengths):
        raise _failure("gave something else than tokens")
    rows = np.split(numbers, np.cumsum(lengths * len(names))[:-1]) if texts else []
    return {name: [row.tolist() for row in rows[i * texts : (i + 1) * texts]] for i, name in enumerate(names)}


def _text(content: bytes) -> str:
    return shown(content.decode(errors="replace"))


def _failure(what: str) -> RequestError:
    return RequestError(Fault.REFUSED, f"the model's tokenizer {what}")
