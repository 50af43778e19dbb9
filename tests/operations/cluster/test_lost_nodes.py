"""The head of a cluster is lost: its cable is pulled, so that nobody is told, and no connection ends."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.lib.cluster import beside_marqo, wait_until
from benchmarks.lib.known_answers import KnownAnswers, Question, elsewhere, failures, question
from benchmarks.lib.target import registered
from tests.support.cluster import PORT, Cluster
from tests.support.machines import Machine
from tests.support.serve import SCENES
from tests.support.waiting import holds

LIMIT_S = 60.0
CLIENTS = 3
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


def test_without_its_head_the_cluster_goes_on(
    cluster: Cluster, nodes: Sequence[Machine], questions: list[Question]
) -> None:
    """A head that runs no replicas is not on the way of any request. The last test of the cluster: it does not come
    back."""
    with loads(questions, nodes) as found:
        wait_for_right_answers(found)
        cluster.head.unplug()
        assert holds(lambda: all(failures(load.replies) == [] for load in found), WITHOUT_HEAD_S)
        wait_for_right_answers(found)
