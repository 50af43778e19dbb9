"""Marqo's release of open_clip, the installed one and this server, compared for each pretrained tag.

The tags: those that the registry names, for which models are built and encode, and all that Marqo's release knows, of
which only the tables are compared. Marqo's release is installed into an environment of its own, with the timm and the
Pillow that Marqo has beside it; everything else comes from this environment. That needs a package index and some
minutes, but no model hub and no weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.benchmark import Benchmark, Figures, Option, Result, Table
from benchmarks.lib.places import OUT, ROOT
from embedding.registry import lookup, names

BESIDE = ("timm==1.0.8", "pillow==10.4.0")
"""Pinned by Marqo's base image too: all that has a part in a vector and can be installed beside this torch."""
SCRIPT = Path(__file__).parent / "lib" / "open_clip_facts.py"
ALIKE = 1 - 1e-6
"""Least cosine of vectors that count as the same."""
QUICK_TAGS = 5
PREPROCESSING = {"mean": None, "std": None, "interpolation": "bicubic", "resize_mode": "shortest"}
HARMLESS = "weights, place"
"""The kind of difference that changes no vector: the address of the same weights."""
INSTALLED, SERVED, TABLES = "the installed open_clip", "this server", "the table of tags"
Facts = dict[str, Any]
Differences = dict[str, dict[str, str]]
"""By kind, then by tag: both values, or the least cosine."""


def measure(quick: bool, folder: str | None = None) -> Result:
    """All differences from Marqo's release. `folder` has its environment, which is made if it is not there."""
    # Here, since it imports torch.
    from embedding.models.openclip.marqo_differences import VERSION

    place = OUT / "open_clip_versions" if folder is None else Path(folder)
    tags = registry_tags()[: QUICK_TAGS if quick else None]
    python = marqo_environment(place, VERSION)
    marqo = facts(python, place / "marqo.json", tags, served=False)
    installed = facts(Path(sys.executable), place / "installed.json", tags, served=False)
    served = facts(Path(sys.executable), place / "served.json", tags, served=True)
    result = {
        "release": VERSION,
        "tags": {INSTALLED: len(tags), SERVED: len(tags), TABLES: len(marqo["tags"])},
        "differences": {
            INSTALLED: differences(marqo["rows"], installed["rows"]),
            SERVED: differences(marqo["rows"], served["rows"]),
            TABLES: table_differences(marqo["tags"], installed["tags"]),
        },
    }
    show(result)
    return result


def registry_tags() -> list[tuple[str, str]]:
    """(architecture, tag) of each name of Marqo's table that is one of open_clip's tags."""
    properties = [lookup(name) or {} for name in names()]
    found = {str(one["name"]) for one in properties if one.get("type") == "open_clip"}
    return [(parts[1], parts[2]) for parts in (name.split("/") for name in sorted(found)) if parts[0] == "open_clip"]


def marqo_environment(folder: Path, release: str) -> Path:
    """The interpreter of an environment with Marqo's release of open_clip, made if it is not there."""
    place = folder / "venv"
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        venv.create(place, with_pip=False, clear=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        shared = next(path for path in sys.path if path.endswith("site-packages"))
        (place / "lib" / version / "site-packages" / "zz-shared.pth").write_text(shared + "\n")
        packages = (f"open_clip_torch=={release}", *BESIDE)
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *packages]
        subprocess.run(command, check=True)
        (place / "ready").touch()
    return python


def facts(python: Path, out: Path, tags: list[tuple[str, str]], served: bool) -> Facts:
    """What `open_clip_facts` finds out in an environment."""
    asked = out.with_suffix(".rows")
    asked.write_text(json.dumps({"rows": tags, "served": served}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(python), "-W", "ignore", str(SCRIPT), str(asked), str(out)], check=True, env=environment)
    found: Facts = json.loads(out.read_text())
    return found


def differences(marqo: Facts, other: Facts) -> Differences:
    """What is built for each tag, in Marqo's release and elsewhere."""
    found: Differences = defaultdict(dict)
    for tag, expected in marqo.items():
        for kind, value in expected.items():
            given = other[tag][kind]
            if kind.startswith("vectors"):
                if (cosine := least_cosine(value, given)) < ALIKE:
                    found[kind][tag] = f"1 - cosine = {1 - cosine:.1e}"
            elif value != given:
                found[kind][tag] = f"{value} → {given}"
    for tag in shared_places(other) - shared_places(marqo):
        found["weights of another tag"][tag] = other[tag][HARMLESS]
    return found


def shared_places(rows: Facts) -> set[str]:
    """Tags whose weights are also those of another tag of the same architecture."""
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for tag, known in rows.items():
        places[tag.partition("/")[0], known[HARMLESS]].add(tag)
    return {tag for together in places.values() if len(together) > 1 for tag in together}


def table_differences(marqo: Facts, installed: Facts) -> Differences:
    """Differences of the two releases' tables of tags. Nothing is built for that."""
    found: Differences = defaultdict(dict)
    for tag, expected in marqo.items():
        given = installed.get(tag)
        if given is None:
            found["missing"][tag] = "only in Marqo's release"
            continue
        if given["config"] != expected["config"]:
            found["config"][tag] = f"{expected['config']} → {given['config']}"
        for key, default in PREPROCESSING.items():
            theirs, ours = (one["entry"].get(key, default) for one in (expected, given))
            if theirs != ours:
                found[key][tag] = f"{theirs} → {ours}"
        if bool(given["entry"].get("quick_gelu")) and not given["config"].get("quick_gelu"):
            built = "built with GELU, but for openai in Marqo's release"
            found["trained with QuickGELU, config says GELU"][tag] = built
    return found


def least_cosine(rows: list[list[float]], others: list[list[float]]) -> float:
    """The least cosine of two lists of vectors, pair by pair; -1 if their shapes differ."""
    one, other = np.asarray(rows, np.float64), np.asarray(others, np.float64)
    if one.shape != other.shape:
        return -1.0
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / norms).min())


def show(result: Mapping[str, Any]) -> None:
    """Prints every difference of every tag."""
    for name, found in result["differences"].items():
        print(f"Marqo's open_clip {result['release']} against {name}:")
        for kind, tags in found.items():
            print(f"  {kind}: {len(tags)}")
            for tag, values in tags.items():
                print(f"    {tag}: {values[:150]}")


def rows(result: Mapping[str, Any]) -> Table:
    """How many tags differ, a line for each kind of difference."""
    table = [[f"Marqo's open_clip {result['release']} against", "difference", "tags"]]
    for name, found in result["differences"].items():
        count = result["tags"][name]
        table += [[name, kind, f"{len(tags)} of {count}"] for kind, tags in found.items()]
        concerned = {tag for tags in found.values() for tag in tags}
        table.append([name, "(none)", f"{count - len(concerned)} of {count}"])
    return table


def summary(result: Mapping[str, Any]) -> Figures:
    """How many tags have other vectors in this server."""
    return {"open_clip_versions_other_vectors": [float(len(other_vectors(result)))]}


def verdict(result: Mapping[str, Any]) -> str:
    """Tags for which this server departs from Marqo's release in anything but the address of the weights."""
    wrong = other_vectors(result)
    return f"this server gives other vectors for {', '.join(sorted(wrong))}" if wrong else ""


def other_vectors(result: Mapping[str, Any]) -> set[str]:
    """Tags for which this server differs in anything but the address of the weights."""
    return {tag for kind, tags in result["differences"][SERVED].items() if kind != HARMLESS for tag in tags}


BENCHMARK = Benchmark(
    name="open_clip_versions",
    title="open_clip: Marqo's release, the installed one and this server, tag by tag",
    measure=measure,
    rows=rows,
    summary=summary,
    verdict=verdict,
    options=(Option("folder", str, ("FOLDER",), "where the environment with Marqo's release is, or is made"),),
)
