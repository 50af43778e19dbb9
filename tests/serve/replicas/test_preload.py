"""Models that a replica loads before it takes traffic (docs/protocol.md, section 8.4)."""

import shutil

from benchmarks.lib.cluster import kill, running, wait_until
from tests.support.replicas import APP, PRELOADED, WEIGHTS, Replicated, holders, models_by_replica
from tests.support.serve import replica_pids
from tests.support.waiting import holds

LIMIT_S = 60.0
WATCHED_S = 3.0
"""Serve's controller looks several times a second whether a replica is ready."""


def test_every_replica_has_them_before_the_first_request(replicated: Replicated) -> None:
    """`no_model` has nothing to load, and is no error."""
    assert replicated.first_models == [list(PRELOADED)] * 3


def test_a_replica_takes_no_traffic_before_it_has_them(replicated: Replicated) -> None:
    """One that replaces a killed one, whose download is held back. The others go on."""
    client, hub = replicated.client, replicated.hub
    before = hub.transfers(WEIGHTS)
    shutil.rmtree(replicated.cache)
    replicated.may_download.clear()
    kill(replica_pids("Encoder", APP)[0])
    wait_until(lambda: hub.transfers(WEIGHTS) > before, "the download", LIMIT_S)
    assert holds(lambda: running("Encoder", APP) == 2 == holders(client, "downloaded"), WATCHED_S)
    client.embed(["meanwhile"], model="random/small")
    replicated.may_download.set()
    wait_until(lambda: running("Encoder", APP) == 3 == len(models_by_replica(client)), "three encoders", LIMIT_S)
    assert all(set(PRELOADED) <= set(names) for names in models_by_replica(client).values())
