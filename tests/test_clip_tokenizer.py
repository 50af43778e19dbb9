"""Our CLIP tokenizer gives open_clip's tokens, and cannot be held up."""

from __future__ import annotations

import time

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.models.clip_tokenizer import ClipTokenizer

OURS, THEIRS = ClipTokenizer(), open_clip.SimpleTokenizer()

TEXTS = [
    "",
    " ",
    "a",
    "A photo of a cat.",
    "it's don't we'll I'm they've he'd you're",
    "ein Bär – 図鑑 и кот 🐈‍⬛",
    "&amp;amp; &lt;b&gt; ﬁne Ã©tÃ©",
    "<start_of_text> in <end_of_text> the middle",
    "12345 3.14 1,000",
    "a" * 300,
    "word " * 200,
    "\0\n\t\u200b",
    "antidisestablishmentarianism" * 20,
]


@pytest.mark.parametrize("length", [1, 2, 3, 16, 77])
def test_the_tokens_are_open_clips(length: int) -> None:
    assert torch.equal(OURS(TEXTS, length), THEIRS(TEXTS, length))


def test_one_text_and_none() -> None:
    assert torch.equal(OURS("a cat"), THEIRS("a cat"))
    assert OURS([]).shape == (0, 77)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=3))
def test_any_text(texts: list[str]) -> None:
    if texts:
        assert torch.equal(OURS(texts), THEIRS(texts))


@pytest.mark.parametrize("alphabet", ["a", "ab", "aeinst", "abcdefghijklmnopqrstuvwxyz", "éèàü", "!?.-", "ha"])
def test_words_in_all_their_parts(alphabet: str) -> None:
    """Overlapping pairs and chains of merges: repetitive words have most of them."""
    generator = np.random.default_rng(0)
    for length in (*range(1, 40), 100, 400):
        letters = "".join(generator.choice(list(alphabet), length))
        word = "".join(OURS.byte_encoder[byte] for byte in letters.encode())
        assert OURS.bpe(word) == THEIRS.bpe(word)


def test_long_words_take_no_time_and_stay_right() -> None:
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 1_000_000))
    started = time.process_time()
    tokens = OURS(["a cat " + letters, "word " * 200_000])
    assert time.process_time() - started < 5
    assert torch.equal(tokens, THEIRS(["a cat " + letters[:2000], "word " * 100]))


def test_words_are_not_remembered_for_ever() -> None:
    tokenizer = ClipTokenizer()
    for number in range(70_000):
        tokenizer.bpe(f"w{number}")
    tokenizer(["z" * 10_000])
    assert len(tokenizer.cache) <= 65_536
    assert max(map(len, tokenizer.cache)) <= 64
