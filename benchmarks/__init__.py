"""What the project claims, measured. `python -m benchmarks.run` (ours), `python -m benchmarks.peers` (and others).

Each benchmark is a module with a `measure(quick)` that returns plain data, and with functions that make rows, a
picture and summary figures of that data; `report` writes them down.
"""

import os
from pathlib import Path

# Ray on loopback, as `operations/launch.py` has it: without it Ray would look for a server's Ray at this machine's own
# address. Here, since Ray reads it when it is imported, and some benchmarks import Ray before the launcher.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

ROOT = Path(__file__).parent.parent
OUT = Path(__file__).parent / "out"
"""What benchmarks leave behind: caches, logs, JSON. Not committed."""
RESULTS = Path(__file__).parent / "results"
"""Pictures of the last full run. Committed."""
