"""The comparison with other servers: what becomes of one that does not work, which are compared, and the report."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from benchmarks.lib import process
from benchmarks.lib.models import Checkpoint
from benchmarks.lib.target import json_target
from benchmarks.lib.vectors import deviation
from benchmarks.peers.comparison import FIRST, attempt, finalists, to_try
from benchmarks.peers.report import ratios, rows, verdict
from benchmarks.peers.servers import Entrant, Peer, bentoml_entrants, our_entrants, plain_entrants

CHECKPOINT = Checkpoint("none", Path("none"), 4)
URLS = [f"http://127.0.0.1/{number}.jpg" for number in range(64)]
RIGHT = np.eye(4, dtype=np.float32)

Answer = Callable[[int, BaseHTTPRequestHandler], None]
"""Answers a request, of which it is told the number."""


def reply(handler: BaseHTTPRequestHandler, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def right(number: int, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, np.resize(RIGHT, (FIRST, 4)).tolist())


def empty_later(number: int, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, np.resize(RIGHT, (FIRST, 4)).tolist() if number == 0 else [])


def silent_later(number: int, handler: BaseHTTPRequestHandler) -> None:
    if number == 0:
        right(number, handler)
    else:
        handler.close_connection = True


def busy_later(number: int, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, *((200, np.resize(RIGHT, (FIRST, 4)).tolist()) if number == 0 else (503, "overloaded")))


def short(number: int, handler: BaseHTTPRequestHandler) -> None:
    reply(handler, 200, RIGHT.tolist())


@contextlib.contextmanager
def peer(answer: Answer, _: Checkpoint) -> Iterator[Peer]:
    """An HTTP server that behaves as `answer` does."""
    seen = iter(range(10**9))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(next(seen), self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Peer(
                json_target(f"http://127.0.0.1:{server.server_port}/", {}, "urls", lambda rows: rows), os.getpid()
            )
        finally:
            server.shutdown()
            thread.join()


def attempted(answer: Answer, expected: np.ndarray = RIGHT) -> dict[str, Any]:
    return attempt(Entrant("other", "other", "torch", partial(peer, answer), 2), CHECKPOINT, URLS, 0.5, expected)


def test_a_server_that_works_has_a_speed_and_a_deviation() -> None:
    found = attempted(right)
    assert found["rate"] > 0
    assert found["cpu ms"] > 0
    assert (found["deviation"], found["problem"]) == (0.0, "")
    assert attempted(right, RIGHT[::-1])["deviation"] == 1.0


@pytest.mark.parametrize(
    ("answer", "problem", "checked"),
    [
        (empty_later, "no answer in 0.5 s", True),
        (silent_later, "Server disconnected", True),
        (busy_later, "answered 503: b'\"overloaded\"'", True),
        (short, "gave another number of vectors than was asked for", False),
    ],
)
def test_a_server_that_answers_nothing_is_shown_with_the_reason(answer: Answer, problem: str, checked: bool) -> None:
    found = attempted(answer)
    assert (found["rate"], found["cpu ms"], found["deviation"]) == (0.0, None, 0.0 if checked else None)
    assert problem in found["problem"]


def test_of_a_server_that_does_not_start_the_error_in_its_log_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "OUT", tmp_path)
    script = "print('starting'); raise NotImplementedError('no pictures with this engine')"

    @contextlib.contextmanager
    def start(_: Checkpoint) -> Iterator[Peer]:
        with process.server("broken", [sys.executable, "-c", script], "http://127.0.0.1:1/"):
            raise AssertionError("it has started")
        yield

    found = attempt(Entrant("other", "other", "torch", start, 2), CHECKPOINT, URLS, 0.5, RIGHT)
    assert found["problem"] == "NotImplementedError: no pictures with this engine"


def test_a_mistake_of_the_benchmark_itself_is_no_reason() -> None:
    @contextlib.contextmanager
    def start(_: Checkpoint) -> Iterator[Peer]:
        raise TypeError("a mistake")
        yield

    with pytest.raises(TypeError, match="a mistake"):
        attempt(Entrant("other", "other", "torch", start, 2), CHECKPOINT, URLS, 0.5, RIGHT)


def test_vectors_are_compared_whatever_their_length() -> None:
    assert deviation(3 * RIGHT, RIGHT) == 0.0
    assert deviation(np.array([[1, 1]], np.float32), np.array([[1, 0]], np.float32)) == pytest.approx(1 - 0.5**0.5)
    for wrong in (RIGHT[:3], 0 * RIGHT, np.nan * RIGHT):
        with pytest.raises(ValueError, match=r"shape|zero"):
            deviation(wrong, RIGHT)


ENTRANTS = [
    *our_entrants(6, bf16=True),
    *plain_entrants(6, ("onnx", "torch", "torch-bf16")),
    *bentoml_entrants((6,), ("onnx", "torch"), (64,), (1, 2)),
]


def found(rate: float, deviation: float | None = 1e-7, problem: str = "") -> dict[str, Any]:
    return {"rate": rate, "cpu ms": 1000 / rate if rate else None, "deviation": deviation, "problem": problem}


def test_families_with_several_ways_are_tried_and_the_quickest_of_each_precision_compared() -> None:
    trials = to_try(ENTRANTS, {})
    assert [one.name for one in trials] == [
        *("plain, onnx", "plain, torch"),
        *(f"BentoML, {way}, {workers}, batches of 64, 6 clients" for way in ("onnx", "torch") for workers in WORKERS),
    ]
    rates = dict(zip((one.name for one in trials), (10, 12, 5, 9, 0, 8), strict=True))
    tried = {name: found(rate) for name, rate in rates.items()}
    names = [one.name for one in finalists(ENTRANTS, tried, {"BentoML": 2})]
    assert names == [
        *("ours", "ours, bf16", "plain, torch", "plain, torch-bf16"),
        *("BentoML, onnx, 2 workers, batches of 64, 6 clients", "BentoML, torch, 2 workers, batches of 64, 6 clients"),
    ]
    assert [one.name for one in finalists(ENTRANTS, {}, {})][2] == "plain, onnx"  # the first, where none was tried


WORKERS = ("1 worker", "2 workers")


def result(*rounds: Mapping[str, Mapping[str, Any]], tried: Mapping[str, Mapping[str, Any]] | None = None) -> Any:
    known = [*ENTRANTS, Entrant("infinity, torch", "infinity", "torch", partial(peer, right), 6)]
    return {
        "entrants": {one.name: {"family": one.family, "way": one.way, "precision": one.precision} for one in known},
        "tried": tried or {},
        "rounds": rounds,
        "distance between pictures": 0.01,
        "bentoml tensors": [{"batch": 1, "ms per picture": 100.0}],
    }


def test_a_server_that_answered_nothing_has_no_ratio_and_divides_nothing() -> None:
    nothing = found(0.0, None, "answered 503")
    once = result({"ours": found(40.0), "infinity, torch": nothing})
    assert ratios(once) == {}
    assert rows(once)[2] == ["infinity, torch", "none: answered 503", "–", "–", "–", "–"]
    partly = result(
        {"ours": found(40.0), "infinity, torch": nothing}, {"ours": found(44.0), "infinity, torch": found(11.0)}
    )
    assert ratios(partly) == {"vs_infinity": [4.0]}
    assert rows(partly)[2][-1] == "4.00"
    assert verdict(once) == verdict(partly) == ""
    silent = result({"ours": nothing, "infinity, torch": found(11.0)})
    assert ratios(silent) == {}
    assert verdict(silent) == "ours answered nothing in round 1: answered 503"


def test_each_precision_of_ours_has_a_column_and_figures() -> None:
    both = result(
        {
            "ours": found(40.0),
            "ours, bf16": found(80.0),
            "plain, torch": found(20.0),
            "plain, torch-bf16": found(50.0),
        }
    )
    table = rows(both)
    assert table[0][-2:] == ["ours / it", "ours, bf16 / it"]
    assert table[3][-2:] == ["2.00", "4.00"]
    assert {len(row) for row in table} == {len(table[0])}
    assert ratios(both) == {"vs_plain": [2.0], "bf16_vs_plain": [4.0], "bf16_vs_plain_bf16": [1.6]}


def test_trials_have_a_line_for_each_way() -> None:
    one, two = (f"BentoML, onnx, {workers}, batches of 64, 6 clients" for workers in WORKERS)
    tried = {"plain, onnx": found(0.0, None, "NotImplementedError: no"), one: found(20.0), two: found(9.5)}
    table = rows(result({"ours": found(40.0)}, tried=tried))
    assert table[2][:2] == ["(plain, onnx: 1 tried)", "none: NotImplementedError: no"]
    assert table[3][:3] == [f"(2 tried, best: {one})", "20", "9.5 - 20"]
    assert {len(row) for row in table} == {len(table[0])}


def test_other_vectors_are_a_verdict() -> None:
    assert verdict(result({"ours": found(40.0, 9e-5)})) == ""
    wrong = result({"ours": found(40.0), "plain, torch": found(9.0, 2e-4)})
    assert verdict(wrong) == "plain, torch gives other vectors in round 1: 1 - cosine = 2.0e-04"
    assert "in the trials" in verdict(result({"ours": found(40.0)}, tried={"plain, torch": found(9.0, 2e-4)}))
