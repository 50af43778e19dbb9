"""Texts over HTTP, through the whole graph: docs/protocol.md, sections 1.5, 6 and 7.4."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from tests.support.ingress import SMALL, drawn, vectors
from tests.support.marqo_client import MarqoClient
from tests.support.protocol import REQUEST


def test_marqos_example_request_gives_its_example_vector(marqo: MarqoClient) -> None:
    reply = marqo.post(REQUEST)
    assert reply.status_code == 200
    ((key, array),) = msgpack.unpackb(reply.content)["result"][0:1][0]
    # Not decoded by msgpack_numpy: keys must be bytes, the type little-endian float32 (sections 0 and 1.5).
    assert list(array) == [b"nd", b"type", b"kind", b"shape", b"data"]
    assert (key, array[b"nd"], array[b"type"], array[b"kind"], array[b"shape"]) == ("hi", True, "<f4", b"", [32])
    expected = [-0.230464, -0.119909, 0.042106]
    np.testing.assert_allclose(np.frombuffer(array[b"data"], "<f4")[:3], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("text", [-0.505519, 1.681069, -3.218303, -0.282320]),
        ("hello", [0.118655, 1.598559, -0.819053, -0.072945]),
        ("hi", [-1.234474, -0.642289, 0.225542, 0.026678]),
        ("", [-0.243398, 0.686014, 0.155710, -0.309838]),
    ],
)
def test_the_random_model_is_the_sheets(marqo: MarqoClient, text: str, raw: list[float]) -> None:
    properties = SMALL | {"dimensions": 4}
    ((key, vector),) = marqo.results([text], properties=properties, normalize=False)[0]
    assert key == text
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, raw, atol=1e-6)
    ((_, vector),) = marqo.results([text], properties=properties)[0]
    np.testing.assert_allclose(vector, np.array(raw) / np.linalg.norm(raw), atol=1e-6)


def test_order_keys_and_duplicates(marqo: MarqoClient) -> None:
    texts = ["b", "a", "b", "", " ", "ein Bär", "a", "图 🐻", "b" * 5000, "\n", "a\x00b"]
    results = marqo.results(texts, properties=SMALL)
    assert [item[0][0] for item in results] == texts
    assert all(len(pair) == 2 for item in results for pair in item)
    np.testing.assert_array_equal(vectors(results), drawn(texts))


def test_several_hundred_texts(marqo: MarqoClient) -> None:
    """More than fit into a batch, and than the ingress hands over at once."""
    texts = [f"text {i % 350}" for i in range(700)]
    results = marqo.results(texts, properties=SMALL)
    assert [item[0][0] for item in results] == texts
    np.testing.assert_array_equal(vectors(results), drawn(texts))


@pytest.mark.parametrize("prefix", [None, "", "passage: ", "no space"])
def test_prefixes_are_embedded_and_not_returned(marqo: MarqoClient, prefix: str | None) -> None:
    texts = ["a", "", "b"]
    results = marqo.results(texts, properties=SMALL, preprocessing={"textPrefix": prefix})
    assert [item[0][0] for item in results] == texts
    np.testing.assert_array_equal(vectors(results), drawn([(prefix or "") + text for text in texts]))


CHUNKED = [  # section 6.3
    ("character", 3, 1, "hello", ["hel", "llo"]),
    ("word", 3, 1, "This is a test sentence", ["This is a", "a test sentence"]),
    ("word", 20, 0, "don't stop; it's 3:30", ["do n't stop ; it 's 3:30"]),
    ("sentence", 2, 1, "One. Two. Three. Four. Five.", ["One. Two.", "Two. Three.", "Three. Four.", "Four. Five."]),
    ("sentence", 1, 0, "Hello, world! Dr. Smith paid $5.50.", ["Hello, world!", "Dr. Smith paid $5.50."]),
    ("passage", 1, 0, "p1 line1\nline2\n\np2\n\n\np3", ["p1 line1\nline2", "p2", "\np3"]),
]


@pytest.mark.parametrize(("method", "length", "overlap", "text", "chunks"), CHUNKED)
def test_chunks(marqo: MarqoClient, method: str, length: int, overlap: int, text: str, chunks: list[str]) -> None:
    """Each chunk with its own vector, between contents that are not cut: a blank one and a single letter."""
    config = {"splitMethod": method, "splitLength": length, "splitOverlap": overlap}
    results = marqo.results(
        ["x", text, "  ", text],
        properties=SMALL,
        preprocessing={"shouldChunk": True, "textPrefix": "p: ", "chunkConfig": config},
    )
    assert [[key for key, _ in item] for item in results] == [["x"], chunks, [" "], chunks]
    for item in results:
        expected = drawn(["p: " + key for key, _ in item])
        np.testing.assert_array_equal(np.stack([vector for _, vector in item]), expected)


def test_a_long_text_in_hundreds_of_chunks(marqo: MarqoClient) -> None:
    config = {"splitMethod": "word", "splitLength": 2, "splitOverlap": 0}
    text = " ".join(f"word{i}" for i in range(1000))
    preprocessing = {"shouldChunk": True, "chunkConfig": config}
    (pairs,) = marqo.results([text], properties=SMALL, preprocessing=preprocessing)
    assert [key for key, _ in pairs] == [f"word{i} word{i + 1}" for i in range(0, 1000, 2)]
