"""`python -m benchmarks.open_clip_versions [FOLDER]`: Marqo's open_clip, the installed one and this server, tag by tag.

For every name of the registry that is a pretrained tag of open_clip, and every tag that Marqo's release knows. Marqo's
release goes into an environment of its own in FOLDER (by default under benchmarks/out), with the timm and the Pillow
that Marqo has beside it, and takes everything else from this one. Needs a package index for that, some minutes, no hub
and no weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.places import OUT, ROOT
from embedding.models.openclip.reference import VERSION
from embedding.registry import lookup, names

MARQO = (f"open_clip_torch=={VERSION}", "timm==1.0.8", "pillow==10.4.0")
"""What Marqo's base image pins, of all that decides a vector of open_clip and can be installed beside this torch."""
SCRIPT = Path(__file__).parent / "lib" / "open_clip_facts.py"
ALIKE = 1 - 1e-6
PREPROCESSING = {"mean": None, "std": None, "interpolation": "bicubic", "resize_mode": "shortest"}
Facts = dict[str, Any]


def main() -> None:
    """Prints a table, and exits with 1 if the server departs from Marqo's release in a vector."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT / "open_clip_versions"
    rows = registry_rows()
    python = marqo_environment(folder)
    marqo = facts(python, folder / "marqo.json", rows, served=False)
    installed = facts(Path(sys.executable), folder / "installed.json", rows, served=False)
    served = facts(Path(sys.executable), folder / "served.json", rows, served=True)
    print(f"{len(rows)} pretrained tags of the registry, Marqo's open_clip {VERSION} against …\n")
    for name, other in (("the installed one", installed), ("this server", served)):
        print(f"… {name}:")
        show(differences(marqo["rows"], other["rows"]), len(rows))
    print(f"Tables of all {len(marqo['tags'])} tags that {VERSION} knows:")
    show(table_differences(marqo["tags"], installed["tags"]), len(marqo["tags"]))
    wrong = {
        name
        for kind, found in differences(marqo["rows"], served["rows"]).items()
        if kind != "weights, place"
        for name in found
    }
    sys.exit(f"this server gives other vectors for {sorted(wrong)}" if wrong else 0)


def registry_rows() -> list[tuple[str, str]]:
    """(architecture, tag) of each name of Marqo's table that is one of open_clip's tags."""
    properties = [lookup(name) or {} for name in names()]
    found = {str(one["name"]) for one in properties if one.get("type") == "open_clip"}
    return [(parts[1], parts[2]) for parts in (name.split("/") for name in sorted(found)) if parts[0] == "open_clip"]


def marqo_environment(folder: Path) -> Path:
    """The interpreter of an environment with Marqo's release, made if it is not there."""
    place = folder / "venv"
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        venv.create(place, with_pip=False, clear=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        shared = next(path for path in sys.path if path.endswith("site-packages"))
        (place / "lib" / version / "site-packages" / "zz-shared.pth").write_text(shared + "\n")
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *MARQO]
        subprocess.run(command, check=True)
        (place / "ready").touch()
    return python


def facts(python: Path, out: Path, rows: list[tuple[str, str]], served: bool) -> Facts:
    """What `open_clip_facts` says in an environment."""
    asked = out.with_suffix(".rows")
    asked.write_text(json.dumps({"rows": rows, "served": served}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(python), "-W", "ignore", str(SCRIPT), str(asked), str(out)], check=True, env=environment)
    found: Facts = json.loads(out.read_text())
    return found


def differences(marqo: Facts, other: Facts) -> dict[str, dict[str, str]]:
    """Kind of difference → row → the two values, or the least cosine."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row, expected in marqo.items():
        for kind, value in expected.items():
            given = other[row][kind]
            if kind.startswith("vectors"):
                if (cosine := least_cosine(value, given)) < ALIKE:
                    found[kind][row] = f"1 - cosine = {1 - cosine:.1e}"
            elif value != given:
                found[kind][row] = f"{value} → {given}"
    for row in shared_places(other) - shared_places(marqo):
        found["weights of another tag"][row] = other[row]["weights, place"]
    return found


def shared_places(rows: Facts) -> set[str]:
    """Rows whose weights are also those of another tag of the same architecture."""
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row, known in rows.items():
        places[row.partition("/")[0], known["weights, place"]].add(row)
    return {row for together in places.values() if len(together) > 1 for row in together}


def table_differences(marqo: Facts, installed: Facts) -> dict[str, dict[str, str]]:
    """The same of the two tables of tags, without building anything."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row, expected in marqo.items():
        given = installed.get(row)
        if given is None:
            found["missing"][row] = "only in Marqo's release"
            continue
        if given["config"] != expected["config"]:
            found["config"][row] = f"{expected['config']} → {given['config']}"
        for key, default in PREPROCESSING.items():
            ours, theirs = (one["entry"].get(key, default) for one in (expected, given))
            if ours != theirs:
                found[key][row] = f"{ours} → {theirs}"
        if bool(given["entry"].get("quick_gelu")) and not given["config"].get("quick_gelu"):
            found["trained with QuickGELU, config says GELU"][row] = (
                "built with GELU, but for openai in Marqo's release"
            )
    return found


def least_cosine(rows: list[list[float]], others: list[list[float]]) -> float:
    one, other = np.asarray(rows, np.float64), np.asarray(others, np.float64)
    if one.shape != other.shape:
        return -1.0
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / norms).min())


def show(found: dict[str, dict[str, str]], count: int) -> None:
    """A line for each row of each kind, and how many rows have none."""
    for kind, rows in found.items():
        print(f"  {kind}: {len(rows)}")
        for row, values in rows.items():
            print(f"    {row}: {values[:150]}")
    concerned = {row for kind, rows in found.items() for row in rows}
    print(f"  none: {count - len(concerned)} of {count}\n")


if __name__ == "__main__":
    main()
