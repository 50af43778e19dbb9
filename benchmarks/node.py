"""`python -m benchmarks.node ADDRESS CPUS`: a worker node on loopback until it is ended.

`ray start` would do, but insists on the machine's own address, where the server's Ray does not listen.
"""

from __future__ import annotations

import sys
import time

from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray._private.node import Node
from ray._private.parameter import RayParams

STORE_BYTES = 200_000_000


def main() -> None:
    """Joins, and waits to be killed."""
    address, cpus = sys.argv[1:]
    _enable_token_auth()
    parameters = RayParams(
        gcs_address=address,
        node_ip_address="127.0.0.1",
        num_cpus=int(cpus),
        object_store_memory=STORE_BYTES,
        include_log_monitor=False,
    )
    Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=False)
    time.sleep(24 * 3600)


if __name__ == "__main__":
    main()
