"""What the project claims, measured. `python -m benchmarks.run` (ours), `python -m benchmarks.peers` (and others).

Each benchmark is a module with a `measure(quick)` that returns plain data, and with functions that make rows, a
picture and summary figures of that data; `report` writes them down.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "out"
"""What benchmarks leave behind: caches, logs, JSON. Not committed."""
RESULTS = Path(__file__).parent / "results"
"""Pictures of the last full run. Committed."""
