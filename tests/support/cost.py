"""What a call costs the process that makes it: memory, and how long it keeps Python's lock from others.

    costs = cost("tests.support.weights:unpack_archive", ["/tmp/a.tar", "/tmp/b.zip"])
    assert costs["/tmp/a.tar"].peak_mib < 200

The calls are made in a process of their own, with limits, one after the other.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.places import ROOT

_LIMIT_BYTES = 6 * 2**30


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call.

    Args:
        result: what it returned, or the type and text of what it raised.
        peak_mib: the most memory of the process during the call, less what it had before.
        stall_s: the longest time for which no other thread could run Python. Of time that the machine gave to other
            processes nothing counts.
        seconds: CPU time of the call.
    """

    result: str
    peak_mib: float
    stall_s: float
    seconds: float


def cost(function: str, arguments: Sequence[str], timeout_s: float = 120) -> dict[str, Cost]:
    """Calls `MODULE:FUNCTION`, imported as from here, with each argument."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", __name__, function, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    results = json.loads(done.stdout.splitlines()[-1])
    return {argument: Cost(**result) for argument, result in zip(arguments, results, strict=True)}


def _measured(call: Callable[[str], object], argument: str) -> Cost:
    outcome: list[str] = []

    def run() -> None:
        try:
            outcome.append(str(call(argument)))
        except BaseException as error:
            outcome.append(f"{type(error).__name__}: {error}")

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = _status("VmRSS"), time.process_time()
    thread = threading.Thread(target=run)
    stall = 0.0
    wall, spent = time.monotonic(), time.process_time()
    thread.start()
    while thread.is_alive():
        time.sleep(0.002)
        now, now_spent = time.monotonic(), time.process_time()
        stall = max(stall, min(now - wall, now_spent - spent))
        wall, spent = now, now_spent
    return Cost(outcome[0], (_status("VmHWM") - before) / 1024, stall, time.process_time() - started)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    call = getattr(importlib.import_module(module), name)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") * 1024 + _LIMIT_BYTES,) * 2)
    results = [_measured(call, argument) for argument in sys.argv[2:]]
    print(json.dumps([{name: getattr(result, name) for name in Cost.__slots__} for result in results]))


if __name__ == "__main__":
    main()
