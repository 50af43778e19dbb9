"""Where things happen: Ray Serve's deployments, and how they are started."""

import os

# Threads of torch that wait for work or for each other sleep, instead of spinning on cores that preprocessors need: of
# two cores and a small CLIP the spinning took 3 ms for each picture. OpenMP reads it when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
