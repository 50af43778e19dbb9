"""Folders of the checkout that benchmarks and tests use."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "benchmarks" / "out"
"""What benchmarks leave behind: caches, logs, JSON. Not committed."""
RESULTS = ROOT / "benchmarks" / "results"
"""Pictures of the last full run. Committed."""
