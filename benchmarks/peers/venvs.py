"""Virtual environments of the other servers: made once from pinned requirements, under benchmarks/out."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

from benchmarks.lib.places import OUT

REQUIREMENTS = Path(__file__).parent / "requirements"


@cache
def venv(peer: str) -> Path:
    """The folder with the programs of a server's virtual environment, which is made if need be.

    Raises:
        subprocess.CalledProcessError: pip could not install it, and has printed why.
    """
    folder = OUT / "venvs" / peer
    wanted = (REQUIREMENTS / f"{peer}.txt").read_text()
    made_from = folder / "made-from.txt"
    if not made_from.exists() or made_from.read_text() != wanted:
        print(f"installing {peer} (once; this takes a few minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", str(REQUIREMENTS / f"{peer}.txt")], check=True)
        made_from.write_text(wanted)
    return folder / "bin"


def make_all() -> None:
    """Makes the virtual environments of all servers.

    Raises:
        subprocess.CalledProcessError: as `venv`.
    """
    for requirements in sorted(REQUIREMENTS.glob("*.txt")):
        venv(requirements.stem)


def version(peer: str, package: str) -> str:
    """The version of a package in a server's virtual environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    answer = subprocess.run([str(venv(peer) / "python"), "-c", code], capture_output=True, text=True, check=True)
    return answer.stdout.strip()
