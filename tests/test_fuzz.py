"""A short form of `make fuzz`, all that it ever found, and whether it would see a crash, a loop and a flood."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fuzz.bodies import CLIENT_FAULTS, Bodies
from fuzz.campaign import run
from fuzz.target import Finding, Target, apart, minimised
from marqo_client import MarqoClient
from test_launch import operators_environment

from deployments.ingress import STATUS

TESTS = Path(__file__).parent


def fuzz(*arguments: str) -> str:
    """`python -m fuzz` in a process of its own: it forks, and this one has Ray's threads."""
    environment = operators_environment() | {"PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS)))}
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments], cwd=TESTS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("target", "executions"), [("requests", 10_000), ("images", 4000), ("texts", 1000)])
def test_a_short_campaign(target: str, executions: int, tmp_path: Path) -> None:
    told = fuzz(target, "--executions", str(executions), "--seed", "20261122", "--findings", str(tmp_path))
    assert f"{executions} executions" in told
    assert " 0 findings" in told
    # Mutations that only ever break everything would test next to nothing.
    assert re.search(r"^ +\d{2,} +(valid|pixels|as NLTK's)$", told, re.MULTILINE)


def test_what_was_found_before_stays_mended() -> None:
    told = fuzz("--replay").splitlines()
    assert len(told) == sum(1 for path in (TESTS / "fuzz" / "findings").glob("*/*") if path.is_file())
    assert told


class Trap(Target):
    """Inputs are single bytes; some of them do what must not go unseen."""

    name = "trap"
    deadline_s = 0.05
    memory_bytes = 32 * 2**20

    def make(self, seed: int, index: int) -> bytes:
        return bytes([index])

    def run(self, data: bytes, index: int) -> str:
        match data[-1]:
            case 3:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 5:
                raise Finding("seen", "by the target")
            case 7:
                raise KeyError("of the code")
            case 11:
                while True:
                    pass
            case 13:
                bytearray(b"x") * (64 << 20)
            case 17:
                sum(range(10_000_000))
        return "good"


# Forks in a process with threads: the children of these two tests run nothing but the lines above.
def test_crashes_loops_floods_and_exceptions_are_put_down_to_their_inputs() -> None:
    tally = run(Trap(), 24, seed=1, workers=1).tally
    assert tally.executions == 24
    assert {index: finding.partition(":")[0] for index, finding in tally.findings.items()} == {
        3: "died",
        5: "seen",
        7: "raised KeyError",
        11: "endless",
        13: "memory",
        17: "slow",
    }
    assert "SIGSEGV" in tally.findings[3]


def test_an_input_is_made_smaller_for_as_long_as_it_finds_the_same() -> None:
    assert minimised(Trap(), bytes(50) + b"\3") == b"\3"
    assert apart(Trap(), b"\3").finding == "died: SIGSEGV"


def test_the_faults_of_a_request_are_statuses_of_4xx() -> None:
    assert all(400 <= STATUS[fault][0] < 500 for fault in CLIENT_FAULTS)


# --- The same bodies over HTTP ---

BODIES = 3000


@pytest.fixture
def closed(application: Callable[[dict[str, Any]], MarqoClient]) -> MarqoClient:
    """An application that loads nothing from anywhere."""
    share = {"ray_actor_options": {"num_cpus": 0.1}}
    models = {"model_sources": ["path"], "path_roots": [str(TESTS / "nowhere")]}
    return application(
        {
            "name": "closed",
            "route_prefix": "/closed",
            "import_path": "graph:build_app",
            "args": {"encoder": {"device": "cpu", "models": models}},
            "deployments": [{"name": name, **share} for name in ("Ingress", "Preprocessor", "Encoder")],
        }
    )


def test_no_body_over_http_gives_a_500(closed: MarqoClient) -> None:
    """No body may make the server look up a name, either: URLs lose their scheme."""
    target = Bodies()

    def post(index: int) -> httpx.Response:
        return closed.post(re.sub(rb"(?i)http", b"hxxp", target.make(7, index)))

    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(post, range(BODIES)))
    bad = {i: (r.status_code, r.text[:300]) for i, r in enumerate(replies) if r.status_code not in (200, 400, 413, 422)}
    assert not bad
    assert sum(reply.status_code == 200 for reply in replies) > BODIES / 20
    assert closed.get("/healthz").status_code == 200
