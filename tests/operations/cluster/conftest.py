"""A cluster that the tests of this folder share: a head without replicas, and two nodes, `a` and `b`. Each test runs on
a fourth machine, a client's."""

from collections.abc import Iterator, Sequence

import pytest

from benchmarks.lib.image_host import ImageHost
from demo.pictures import EVALUATION_SEEDS, jpeg_bytes
from tests.support import machines
from tests.support.cluster import Cluster, cluster_on, config_of_two
from tests.support.machines import Machine
from tests.support.serve import SCENES


@pytest.fixture(scope="package")
def network() -> Iterator[Sequence[Machine]]:
    """The machines: the head, `a`, `b` and the client's."""
    if reason := machines.why_not():
        pytest.skip(reason)
    with machines.machines("head", "a", "b", "client") as found:
        yield found


@pytest.fixture(scope="package")
def shared_cluster(network: Sequence[Machine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    head, a, b, client = network
    with cluster_on(head, [a, b], [client], tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.deploy(config_of_two(f"{client.address}/32"))
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster, nodes: Sequence[Machine]) -> Cluster:
    """The cluster, with a replica of each deployment on both nodes."""
    shared_cluster.wait_for_replicas(nodes)
    return shared_cluster


@pytest.fixture
def nodes(network: Sequence[Machine]) -> Sequence[Machine]:
    """`a` and `b`."""
    return network[1:3]


@pytest.fixture(autouse=True)
def client(network: Sequence[Machine]) -> Iterator[Machine]:
    """The client's machine; the test runs there."""
    with network[3].entered():
        yield network[3]


@pytest.fixture
def image_host(client: Machine) -> Iterator[ImageHost]:
    """Pictures on the client's machine, by number."""
    files = {f"{i}.jpg": jpeg_bytes(scene.draw(EVALUATION_SEEDS[i])) for i, scene in enumerate(SCENES)}
    with ImageHost(files, address=client.address) as host:
        yield host


@pytest.fixture
def pictures(image_host: ImageHost) -> list[str]:
    """Their URLs."""
    return [image_host.url(f"/ok/{name}") for name in image_host.files]
