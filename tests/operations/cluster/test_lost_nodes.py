"""Machines of a cluster are lost: a cable is pulled, so that nobody is told, and no connection ends."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from benchmarks.lib.cluster import beside_marqo, wait_until
from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.known_answers import KnownAnswers, Question, elsewhere, failures, question
from benchmarks.lib.target import registered
from tests.support.cluster import MODEL_FILE, PORT, Cluster
from tests.support.ingress import assert_right
from tests.support.machines import Machine
from tests.support.marqo_client import MarqoClient
from tests.support.serve import SCENES
from tests.support.waiting import holds

LIMIT_S = 60.0
CLIENTS = 3
MODELS = 4
"""As many as a node downloads at a time from one host."""
INGRESS_PORTS = range(30000, 31001)
CALM = 40
"""Right answers, one after the other, after which a load counts as served."""
WITHOUT_HEAD_S = 20.0


@pytest.fixture
def questions(cluster: Cluster, nodes: Sequence[Machine], pictures: list[str]) -> list[Question]:
    url = f"http://{nodes[0].address}:{PORT}"
    texts = [scene.caption for scene in SCENES]
    return [
        question("pictures", registered(url, "demo/clip"), pictures, 6),
        question("texts", registered(url, "demo/clip", "language"), texts, 4),
    ]


@contextmanager
def loads(questions: Sequence[Question], nodes: Sequence[Machine]) -> Iterator[Sequence[KnownAnswers]]:
    """Clients that ask by a HAProxy beside them; those of the first load ask `a` first, those of the second `b`."""
    a, b = (f"{node.address}:{PORT}" for node in nodes)
    with ExitStack() as stack:
        urls = [stack.enter_context(beside_marqo(*order)) for order in ((a, b), (b, a))]
        found = [KnownAnswers([elsewhere(asked, url) for asked in questions], CLIENTS, 0.1) for url in urls]
        yield [stack.enter_context(load) for load in found]


def wait_for_right_answers(loads: Sequence[KnownAnswers]) -> None:
    """The next ones of each load."""
    before = [len(load.replies) for load in loads]
    for load, count in zip(loads, before, strict=True):
        wait_until(lambda load=load, count=count: len(load.replies) >= count + CALM, "answers", LIMIT_S)  # type: ignore[misc]
        assert failures(load.replies) == []


def test_models_that_a_lost_node_was_loading_are_loaded_by_the_other(
    cluster: Cluster, nodes: Sequence[Machine], client: Machine
) -> None:
    """Its power fails. Ingresses wait for the models in calls by value, and send nothing else on those connections."""
    right = MarqoClient(f"http://{nodes[0].address}:{PORT}").embed(["a red circle"])
    files = {MODEL_FILE.name: MODEL_FILE.read_bytes()}
    with ImageHost(files, address=client.address) as host, ExitStack() as stack:
        urls = [host.url(f"/held/{MODEL_FILE.name}?{number}") for number in range(MODELS)]
        asked = {node: ask_ingress(node, urls, stack.enter_context(ThreadPoolExecutor(MODELS))) for node in nodes}
        wait_until(lambda: host.in_flight == MODELS, "downloads", LIMIT_S)
        lost, left = sorted(nodes, key=lambda node: node.connections_to(host.port), reverse=True)
        lost.unplug()
        try:
            lost.power_off()
            wait_until(lambda: left.connections_to(host.port) == MODELS, "downloads by the other node", LIMIT_S)
            host.release()
            assert_right([one.result() for one in asked[left]], right)
        finally:
            host.release()
            lost.plug_in()
            cluster.start(lost)


def ask_ingress(node: Machine, urls: Sequence[str], pool: Executor) -> list[Future[np.ndarray]]:
    """Asks a node's own ingress for a vector by each of the models, on that node. HAProxy would choose another one, and
    send a request again."""
    (port,) = {port for _, port in node.listening() if port in INGRESS_PORTS}
    with node.entered():
        door = MarqoClient(f"http://127.0.0.1:{port}")
        return [pool.submit(door.embed, ["a red circle"], model=url, properties=model(url)) for url in urls]


def model(url: str) -> Mapping[str, Any]:
    return {"name": MODEL_FILE.stem, "type": "open_clip", "dimensions": 128, "size": 64, "url": url}


def test_without_a_node_and_then_the_head_every_request_is_answered(
    cluster: Cluster, nodes: Sequence[Machine], questions: list[Question]
) -> None:
    """By clients beside each of which there is a HAProxy. The head runs no replicas, so it is not on the way of any
    request. The last test of the cluster: what is lost does not come back."""
    lost = nodes[0]
    with loads(questions, nodes) as found:
        wait_for_right_answers(found)
        lost.unplug()
        wait_until(lambda: any(load.longest_wait() > 2 for load in found), "a request that it has", LIMIT_S)
        wait_until(lambda: cluster.misses(lost), "the node to be missed", LIMIT_S)
        wait_for_right_answers(found)
        cluster.head.unplug()
        assert holds(lambda: all(failures(load.replies) == [] for load in found), WITHOUT_HEAD_S)
        wait_for_right_answers(found)
    assert all(failures(load.replies) == [] for load in found)
