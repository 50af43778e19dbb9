"""The subprocess of one tokenizer: loads it, tests it, and then tokenises until its socket is closed.

The tokenizer of an untrusted repository may panic, hang or fill the memory. Here that affects no other model.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedding.models.tokenizers import frames
from embedding.models.tokenizers.fork_server import CpuTimeLimit
from embedding.process_limits import confine

Rows = Mapping[str, Sequence[Sequence[int]]]

MAX_REQUEST_BYTES = 2**31
FAILED, DONE, PANICKED = b"\0", b"\1", b"\2"
_IDS = ("pad_token_id", "pad_token_type_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
_FOREVER_S = 1e6
_TRUSTED_FILE_BYTES = 2**24  # transformers copies the code of a repository before it runs it
PROBES = (
    "",
    " ",
    "The quick brown fox, 42 °C – it's jumping!",
    "word " * 400,
    *("a" * 1000 + end for end in ("", "!", "\n")),
    *(character * 1000 for character in (" ", "0", "-", "\n", "A", "é", "汉", "\u0301", "\u200d", "👩‍👧")),
    "aA1 _-" * 200,
    "ab ba" * 200 + "\u00a0",
    "مرحبا بالعالم שלום עולם नमस्ते ไทย" * 20,
    "\x00\x01\x7f\ufeff\ufffd\ue000\U0010ffff",
)
"""Texts of the test run, which a tokenizer must pass before it is used."""


def preload() -> None:
    """Imports what every worker needs, before the first one is forked."""
    import transformers.models.auto.tokenization_auto
    import transformers.tokenization_utils_tokenizers  # noqa: F401


def work(connection: socket.socket, job: dict[str, Any]) -> None:
    """Loads the tokenizer and sends its properties, or why it failed; then answers each request with tokens.

    Args:
        connection: to the caller; the worker ends when the other end is closed.
        job: {"folder", "trusted", "options", "memory_bytes", "load_s", "limit", "language"}.
    """
    confine(job["memory_bytes"], _FOREVER_S, _TRUSTED_FILE_BYTES if job["trusted"] else 0)
    try:
        with CpuTimeLimit(job["load_s"]):
            tokenizer = _load(job)
            for probe in PROBES:
                _tokenize(tokenizer, {"texts": [probe], "max_tokens": job["limit"], "mode": "text"})
    except BaseException as error:
        frames.send(connection, FAILED + _described(error))
        return
    frames.send(connection, DONE + json.dumps(_facts(tokenizer)).encode())
    while True:
        try:
            request = json.loads(frames.receive(connection, MAX_REQUEST_BYTES))
        except EOFError:
            return
        frames.send(connection, _answer(tokenizer, request))


def _load(job: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        job["folder"], local_files_only=True, trust_remote_code=job["trusted"], **job["options"]
    )
    # As in open_clip's own wrapper: only some tokenizers support several languages.
    set_language = getattr(tokenizer, "set_src_lang_special_tokens", None)
    if job["language"] is not None and callable(set_language):
        set_language(job["language"])
    return tokenizer


def _facts(tokenizer: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in _IDS}
    return facts | {"padding_side": tokenizer.padding_side, "input_names": list(tokenizer.model_input_names)}


def _answer(tokenizer: Any, request: dict[str, Any]) -> bytes:
    """A status (1 byte), the CPU time in microseconds (4 bytes), and the tokens or an error message."""
    start = time.process_time()
    try:
        with CpuTimeLimit(request["cpu_s"]):
            status, content = DONE, _packed(_tokenize(tokenizer, request))
    except Exception as error:
        status, content = FAILED, _described(error)
    except BaseException as error:
        status, content = PANICKED, _described(error)
    spent = min(int((time.process_time() - start) * 1e6), 2**32 - 1)
    return status + spent.to_bytes(4, "little") + content


def _tokenize(tokenizer: Any, request: dict[str, Any]) -> Rows:
    """Rows of tokens by the name of the model's input, none longer than allowed."""
    texts, max_tokens = request["texts"], request["max_tokens"]
    match request["mode"]:
        case "text":  # for `embedding.models.tokenizers.tokens`
            rows = tokenizer(texts, truncation=True, max_length=max_tokens, padding=False, return_attention_mask=True)
        case "clip":  # for open_clip's wrapper
            rows = tokenizer(texts, truncation=True, max_length=max_tokens, padding="max_length")
            rows = {"input_ids": rows["input_ids"]}
        case _:  # for open_clip's wrapper in its mode `clips`, which truncates by itself
            rows = tokenizer(texts, add_special_tokens=False, truncation=False, padding=False)
            rows = {"input_ids": [row[:max_tokens] for row in rows["input_ids"]]}
    longest = max((len(row) for row in rows["input_ids"]), default=0)
    if longest > max_tokens:
        raise ValueError(f"it gives {longest} tokens where it was to cut off at {max_tokens}")
    return {name: rows[name] for name in rows}


def _packed(rows: Rows) -> bytes:
    """Names and lengths as JSON, then the tokens as int64, input by input and row by row."""
    lengths = [len(row) for row in rows["input_ids"]]
    if any([len(row) for row in values] != lengths for values in rows.values()):
        raise ValueError("its inputs are of different lengths")
    head = json.dumps({"names": list(rows), "lengths": lengths}).encode()
    numbers = np.fromiter((token for values in rows.values() for row in values for token in row), np.int64)
    return len(head).to_bytes(4, "little") + head + numbers.tobytes()


def _described(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".encode(errors="replace")
