"""Folders of the checkout that benchmarks and tests use."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "benchmarks" / "out"
"""Caches, logs and JSON of benchmarks. Not committed."""
RESULTS = ROOT / "benchmarks" / "results"
"""Diagrams of the last full runs. Committed."""
