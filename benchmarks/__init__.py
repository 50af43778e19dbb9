import os

# Ray on loopback, as `operations/launch.py` has it: without it Ray would look for a server's Ray at this machine's own
# address. Here, since Ray reads it when it is imported, and some benchmarks import Ray before the launcher.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
