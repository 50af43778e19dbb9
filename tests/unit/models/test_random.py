from __future__ import annotations

import numpy as np
import pytest

from embedding.models.random import HashName, random_vectors

# text, hash, raw vector of 4, first 3 of the normalised vector of 32: docs/protocol.md, section 7.4
PROTOCOL_EXAMPLES: list[tuple[str, HashName, list[float], list[float]]] = [
    ("text", "md5", [-0.655955, -0.437483, -0.635830, -0.235125], [-0.159272, -0.106225, -0.154386]),
    ("text", "blake3", [-0.505519, 1.681069, -3.218303, -0.282320], [-0.084495, 0.280984, -0.537926]),
    ("hello", "md5", [-0.223223, 0.932212, -0.610590, -0.661316], [-0.050689, 0.211683, -0.138650]),
    ("hello", "blake3", [0.118655, 1.598559, -0.819053, -0.072945], [0.017856, 0.240556, -0.123254]),
    ("hi", "md5", [-1.336724, 1.784388, 0.013125, 0.496231], [-0.191289, 0.255352, 0.001878]),
    ("hi", "blake3", [-1.234474, -0.642289, 0.225542, 0.026678], [-0.230464, -0.119909, 0.042106]),
    ("", "md5", [-1.356588, 0.845558, 0.964291, 1.117285], [-0.245462, 0.152996, 0.174479]),
    ("", "blake3", [-0.243398, 0.686014, 0.155710, -0.309838], [-0.053952, 0.152062, 0.034515]),
]


@pytest.mark.parametrize(("text", "hash_name", "unscaled", "normalised"), PROTOCOL_EXAMPLES)
def test_vectors_are_marqos(text: str, hash_name: HashName, unscaled: list[float], normalised: list[float]) -> None:
    np.testing.assert_allclose(random_vectors([text], 4, hash_name)[0], unscaled, atol=1e-6)
    vector = random_vectors([text], 32, hash_name)[0]
    np.testing.assert_allclose((vector / np.linalg.norm(vector))[:3], normalised, atol=1e-6)


def test_blake3_is_the_default() -> None:
    np.testing.assert_array_equal(random_vectors(["a"], 8), random_vectors(["a"], 8, "blake3"))


def test_rows_depend_only_on_their_own_text() -> None:
    vectors = random_vectors(["a", "é你", "a", ""], 5)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, 5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[1:2], random_vectors(["é你"], 5))


def test_no_texts() -> None:
    assert random_vectors([], 7).shape == (0, 7)
