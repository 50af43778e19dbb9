"""The emulated links of the benchmarks: their rate and delay, how connections share them, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.lib.link import RELAY, ROUTER, CannotEmulate, Link, RunningLink, emulated
from benchmarks.links import OURS, WAYS, Ask, asking, figures, rows, summary

KEEPER = """
import sys, time
from benchmarks.lib.link import Link, emulated
with emulated(Link(5.0, 1.0), (sys.argv[1],)) as running:
    print(running.process.pid, flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def link(rate: float, round_trip_ms: float, module: str) -> Iterator[tuple[RunningLink, Ask]]:
    """A link and its clients, or a reason to skip."""
    try:
        with emulated(Link(rate, round_trip_ms), (module,)) as running, asking(running) as ask:
            yield running, ask
    except CannotEmulate as error:
        pytest.skip(str(error))


def took(seen: dict[str, Any]) -> list[float]:
    """Seconds from the start to each picture."""
    assert [one["problem"] for one in seen["pictures"] if one["problem"]] == []
    return [one["ended"] - seen["began"] for one in seen["pictures"]]


# Upper bounds are wide: a busy machine is late, but no link is ever too fast.
@pytest.mark.parametrize("module", [ROUTER, RELAY])
@pytest.mark.parametrize(("rate", "nbytes"), [(2.0, 2_000_000), (40.0, 40_000_000)])
def test_a_link_carries_its_rate(module: str, rate: float, nbytes: int) -> None:
    with link(rate, 1.0, module) as (running, ask):
        (seconds,) = took(ask("Marqo's", "0", nbytes, 1, 1))
        assert 0.95 < seconds < 3
        assert nbytes <= running.crossed()[-1][1] < 1.1 * nbytes


@pytest.mark.parametrize("module", [ROUTER, RELAY])
def test_a_handshake_and_an_answer_take_a_round_trip_each(module: str) -> None:
    with link(5.0, 200.0, module) as (_, ask):
        (seconds,) = took(ask("Marqo's", "0", 1000, 1, 1))
        assert 0.4 < seconds < 1.2


@pytest.mark.parametrize("module", [ROUTER, RELAY])
def test_connections_share_a_link(module: str) -> None:
    with link(4.0, 1.0, module) as (_, ask):
        seconds = sorted(took(ask("Marqo's", "0", 1_000_000, 8, 1)))
        assert 1.9 < seconds[-1] < 6
        assert seconds[0] > 0.4 * seconds[-1]


def test_what_does_not_fit_into_the_buffer_is_dropped() -> None:
    with link(2.0, 1.0, ROUTER) as (running, ask):
        took(ask("Marqo's", "0", 30_000, 1, 20))
        assert running.dropped() > 0


@pytest.mark.parametrize("module", [ROUTER, RELAY])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_the_benchmark_ends(module: str, number: int) -> None:
    devices = Path("/proc/net/dev").read_text().count(":")
    command = [sys.executable, "-c", KEEPER, module]
    keeper = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with keeper:
        assert keeper.stdout is not None
        if not keeper.stdout.readline():
            pytest.skip("no such link on this machine")
        family = psutil.Process(keeper.pid).children(recursive=True)
        assert len(family) == 2
        os.kill(keeper.pid, number)
        keeper.wait(20)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert Path("/proc/net/dev").read_text().count(":") == devices


def test_both_ways_of_a_cell_are_counted_alike() -> None:
    one = Link(5.0, 1.0)
    with link(5.0, 1.0, ROUTER) as (running, ask):
        cell: dict[str, Any] = {"rate": 5.0, "round_trip_ms": 1.0, "nbytes": 100_000, "clients": 2, "pictures": 8}
        cell |= {"alone": 0.1, "ceiling": 1.0, "ways": {}}
        for way in WAYS:
            before = running.crossed()[-1][1]
            seen = ask(way, way[0], 100_000, 2, 4)
            cell["ways"][way] = figures(one, 100_000, 2, seen, running.crossed(), before)
            assert (cell["ways"][way]["arrived"], cell["ways"][way]["lost"]) == (8, 0)
            assert 0 < cell["ways"][way]["used"] < 1
    result = {"cells": [cell, cell | {"alone": None, "ways": {}}], "emulators": [ROUTER]}
    table = rows(result)
    assert {len(row) for row in table} == {len(table[0])}
    assert summary(result)["links_lost"] == [0]


def test_bytes_of_lost_pictures_do_not_count_as_use() -> None:
    pictures = [{"asked": 0.0, "ended": 0.25 * i, "problem": "late" if i % 2 else ""} for i in range(1, 9)]
    crossed = [(0.25 * i, 250_000 * i) for i in range(9)]
    seen = {"began": 0.0, "pictures": pictures}
    counted = figures(Link(1.0, 0.0), 250_000, 1, seen, crossed, 0)
    assert (counted["arrived"], counted["lost"], counted["seconds"]) == (4, 4, 2.0)
    assert counted["used"] == pytest.approx(0.5)


def test_a_result_without_a_cell_in_time_has_no_figures() -> None:
    assert summary({"cells": [{"alone": None, "ways": {}}]}) == {}


def test_ours_tells_why_a_picture_is_lost() -> None:
    with link(1.0, 1.0, RELAY) as (_, ask):
        seen = ask(OURS, "0", 4_000_000, 1, 1)
    (one,) = seen["pictures"]
    assert "3000 ms" in one["problem"]
