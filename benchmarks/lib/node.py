"""A worker node on loopback, until its process ends: `python -m benchmarks.lib.node ADDRESS CPUS`.

`ray start` insists on the machine's own address, where the server's Ray does not listen. The process needs Ray's
environment, with RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, before it starts: Ray reads it when it is imported.
"""

from __future__ import annotations

import sys
import time

from deployments.ray_internals import start_worker_node, use_token_auth

STORE_BYTES = 200_000_000


def main() -> None:
    """Joins the cluster, and waits to be killed."""
    address, cpus = sys.argv[1:]
    use_token_auth()
    start_worker_node(address, "127.0.0.1", int(cpus), STORE_BYTES)
    time.sleep(24 * 3600)


if __name__ == "__main__":
    main()
