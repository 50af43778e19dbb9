"""Documents made to be slow to split: only the client that sends them waits."""

import random
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from tests.support.ingress import SMALL, drawn, vectors
from tests.support.marqo_client import MarqoClient
from tests.support.serve import replica_pids

CHUNKS = {"shouldChunk": True, "chunkConfig": {"splitMethod": "word", "splitLength": 2000, "splitOverlap": 0}}


def short_sentences(characters: int, seed: int) -> str:
    """No two alike, so that nothing can be remembered."""
    rng = random.Random(seed)
    word = "".join(rng.choices("abcdefghijXYZABC0123456789'(,\"", k=characters))
    return " ".join(word[i : i + 3] + rng.choice(".!?") for i in range(0, characters // 5 * 3, 3))


def index(client: MarqoClient, document: str) -> int:
    ((*chunks,),) = client.results([document], model="random/small", properties=SMALL, preprocessing=CHUNKS)
    return len(chunks)


def ingress_cpu() -> float:
    times = [psutil.Process(pid).cpu_times() for pid in replica_pids("Ingress", "marqo")]
    return sum(time.user + time.system for time in times)


def test_hostile_documents_hold_up_nobody(marqo: MarqoClient) -> None:
    index(marqo, "A first one. It loads the tokenizer." * 5)
    before = ingress_cpu()
    waits = []
    with ThreadPoolExecutor(2) as pool:
        documents: list[Future[int]] = [pool.submit(index, marqo, short_sentences(900_000, i)) for i in range(2)]
        while not all(document.done() for document in documents):
            start = time.monotonic()
            assert marqo.get("/healthz").status_code == 200
            marqo.embed(["a red circle"], model="random/small", properties=SMALL)
            waits.append(time.monotonic() - start)
    assert all(document.result() > 50 for document in documents)
    assert len(waits) > 10
    # Splitting in the ingress would have kept the first of them for ten seconds.
    assert max(waits) < 5
    # The ingress passes two megabytes on and back, and answers what was asked meanwhile, but splits nothing: that
    # would have cost it ten seconds.
    assert ingress_cpu() - before < 2 + 0.02 * len(waits)


@pytest.mark.parametrize("length", [30, 3000], ids=["split in the ingress", "split by a preprocessor"])
def test_both_places_split_alike(marqo: MarqoClient, length: int) -> None:
    text = ("Dr. Smith paid. He left! " * 200)[:length]
    config = {"splitMethod": "sentence", "splitLength": 1, "splitOverlap": 0}
    results = marqo.results(
        [text, "", "x"],
        model="random/small",
        properties=SMALL,
        preprocessing={"shouldChunk": True, "chunkConfig": config},
    )
    keys = [[key for key, _ in item] for item in results]
    assert keys[0][:2] == ["Dr. Smith paid.", "He left!"]
    assert keys[1:] == [[" "], ["x"]]


def test_a_content_whose_chunks_find_no_room_is_its_own_error(marqo: MarqoClient) -> None:
    """It would become 144 million characters, each of them once as a key and once in the reply."""
    windows = {"splitMethod": "character", "splitLength": 12_000, "splitOverlap": 11_999}
    results = marqo.results(
        ["before", "ab" * 12_000, "after"],
        model="random/small",
        properties=SMALL,
        preprocessing={"shouldChunk": True, "chunkConfig": windows},
    )
    assert [[key for key, _ in results[i]] for i in (0, 2)] == [["before"], ["after"]]
    assert "smaller overlap" in results[1]["error_message"]


def test_many_long_texts_in_one_request(marqo: MarqoClient) -> None:
    """More than a message between processes may hold by Ray's defaults."""
    texts = [f"{i} " * 300_000 for i in range(10, 30)]
    results = marqo.results(texts, model="random/small", properties=SMALL)
    assert [key for ((key, _),) in results] == texts
    np.testing.assert_array_equal(vectors(results), drawn(texts))


def test_large_vectors_of_many_texts(marqo: MarqoClient) -> None:
    properties = {"name": "wide", "dimensions": 65_536, "type": "random"}
    texts = [str(i) for i in range(40)]
    results = marqo.results(texts, model="wide", properties=properties)
    assert [key for ((key, _),) in results] == texts
    np.testing.assert_array_equal(vectors(results), drawn(texts, 65_536))


@pytest.mark.parametrize("member", ["notes", "name"])
def test_properties_are_of_bounded_size(marqo: MarqoClient, member: str) -> None:
    status, body = marqo.vectorise(["a"], model="random/small", properties=SMALL | {member: "x" * 5_000_000})
    assert status == 400
    assert "100000 are taken" in body["detail"]
