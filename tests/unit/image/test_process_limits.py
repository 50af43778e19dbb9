"""Each limit, in a process of its own that runs into it."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lib.places import ROOT

PRELUDE = "from embedding.process_limits import confine; confine(memory_bytes=2**26, cpu_s=1, file_bytes=2**10)"


def confined(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {PRELUDE}\n{code}"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_what_fits_is_not_disturbed(tmp_path: Path) -> None:
    done = confined("open('f', 'wb').write(bytes(2**10)); print(len(bytes(2**24)))", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{2**24}\n")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("bytes(2**27)", "MemoryError"),
        ("import pathlib; pathlib.Path('f').write_bytes(bytes(2**11))", "File too large"),
    ],
)
def test_what_is_too_much_fails(code: str, told: str, tmp_path: Path) -> None:
    done = confined(code, tmp_path)
    assert done.returncode == 1
    assert told in done.stderr


def test_what_never_ends_is_ended_by_the_kernel(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = confined("while True: pass", tmp_path)
    assert done.returncode == -signal.SIGXCPU
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 4
