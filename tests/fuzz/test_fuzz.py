"""A short form of `make fuzz`, all that it ever found, and whether it would see a crash, a loop and a flood."""

import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.lib.places import ROOT
from deployments.ingress.replies import STATUS
from tests.fuzz.bodies import CLIENT_FAULTS, Bodies
from tests.fuzz.making import make_body
from tests.support.commands import operators_environment
from tests.support.marqo_client import MarqoClient

FOLDER = Path(__file__).parent


def fuzz(*arguments: str, status: int = 0) -> str:
    """`python -m tests.fuzz` in a process of its own: it forks, and this one has Ray's threads."""
    environment = operators_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


CAMPAIGNS = {
    "requests": 10_000,
    "images": 4000,
    "texts": 1000,
    "archives": 3000,
    "checkpoints": 2000,
    "repositories": 3000,
    "scans": 1000,
    "expanding": 2000,
}


@pytest.mark.parametrize(("target", "executions"), CAMPAIGNS.items())
def test_a_short_campaign(target: str, executions: int, tmp_path: Path) -> None:
    told = fuzz(target, "--executions", str(executions), "--seed", "20261122", "--findings", str(tmp_path))
    assert f"{executions} executions" in told
    assert " 0 findings" in told
    # Mutations that only ever break everything would test next to nothing.
    assert re.search(r"^ +\d{2,} +(valid|pixels|as NLTK's|unpacked|valid pickle|answered)$", told, re.MULTILINE)


def test_changes_of_changes_stay_small() -> None:
    """Here a list was repeated and one of its lists, then in it a thousand times, made large: it took 24 GiB."""
    assert len(make_body(20261125, 817542)) < 2**23


def test_what_was_found_before_stays_mended() -> None:
    told = fuzz("--replay").splitlines()
    assert len(told) == sum(1 for path in (FOLDER / "findings").glob("*/*") if path.is_file())
    assert told


def test_crashes_loops_floods_and_exceptions_are_put_down_to_their_inputs(tmp_path: Path) -> None:
    told = fuzz("trap", "--executions", "24", "--findings", str(tmp_path), status=1)
    assert "24 executions" in told
    found = dict(re.findall(r"FOUND input (\d+): (.*)", told))
    assert {int(index): finding.partition(":")[0] for index, finding in found.items()} == {
        3: "died",
        5: "seen",
        7: "raised KeyError",
        11: "endless",
        13: "memory",
        17: "slow",
    }
    assert "SIGSEGV" in found["3"]
    # Kept as it was, and as small as it can be and still find the same.
    assert (tmp_path / "trap-1-3").read_bytes() == bytes(50) + b"\3"
    assert (tmp_path / "trap-1-3.small").read_bytes() == b"\3"


def test_the_faults_of_a_request_are_statuses_of_4xx() -> None:
    assert all(400 <= STATUS[fault][0] < 500 for fault in CLIENT_FAULTS)


# --- The same bodies over HTTP ---

BODIES = 3000


@pytest.fixture
def closed(application: Callable[[dict[str, Any]], MarqoClient]) -> MarqoClient:
    """An application that loads nothing from anywhere."""
    share = {"ray_actor_options": {"num_cpus": 0.1}}
    models = {"model_sources": ["path"], "path_roots": [str(FOLDER / "nowhere")]}
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
