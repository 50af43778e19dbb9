from __future__ import annotations

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.errors import Fault, ItemError, RequestError
from embedding.text import chunks as text
from embedding.text.chunks import SplitMethod, chunk_text, chunk_texts

METHODS: list[SplitMethod] = ["character", "word", "sentence", "passage"]

# content, method, length, overlap, chunks: docs/protocol.md, section 6.3
PROTOCOL_EXAMPLES: list[tuple[str, SplitMethod, int, int, list[str]]] = [
    ("This is a test sentence", "word", 3, 1, ["This is a", "a test sentence"]),
    ("a b c d", "word", 3, 1, ["a b c", "c d"]),
    ("a b c d e f g", "word", 3, 2, ["a b c", "b c d", "c d e", "d e f", "e f g"]),
    ("word " * 100, "word", 2, 0, ["word word"] * 50),
    (
        "Hello, world! I can't go. Dr. Smith paid $5.50 (today).",
        "sentence",
        1,
        0,
        ["Hello, world!", "I can't go.", "Dr. Smith paid $5.50 (today)."],
    ),
    (
        "One. Two. Three. Four. Five.",
        "sentence",
        2,
        1,
        ["One. Two.", "Two. Three.", "Three. Four.", "Four. Five."],
    ),
    ("hello", "character", 2, 0, ["he", "ll", "o"]),
    ("hello", "character", 3, 1, ["hel", "llo"]),
    ("  ab  ", "character", 2, 0, ["  ", "ab", "  "]),
    ("p1 line1\nline2\n\np2\n\n\np3", "passage", 1, 0, ["p1 line1\nline2", "p2", "\np3"]),
    ("p1\n\n\n\np2", "passage", 2, 0, ["p1 ", "p2"]),
    ("p1\n\np2\n\np3", "passage", 2, 1, ["p1 p2", "p2 p3"]),
    ("don't stop; it's 3:30", "word", 20, 0, ["do n't stop ; it 's 3:30"]),
    ("  leading and   multiple spaces ", "word", 3, 0, ["leading and multiple", "spaces"]),
    ("你好世界。今天天气很好。", "sentence", 1, 0, ["你好世界。今天天气很好。"]),
    *((blank, method, 1, 0, [" "]) for blank in ("", "   ", "\n", "\u2028 ") for method in METHODS),
    *((letter, method, 9, 8, [letter]) for letter in ("x", "你", ".") for method in METHODS),
]


@pytest.mark.parametrize(("content", "method", "length", "overlap", "chunks"), PROTOCOL_EXAMPLES)
def test_chunk_examples_of_marqos_protocol(
    content: str, method: SplitMethod, length: int, overlap: int, chunks: list[str]
) -> None:
    assert chunk_text(content, method, length, overlap) == chunks


# What NLTK 3.10 gives with the real punkt_tab data.
SENTENCES = [
    ["Dr. Smith went to Washington, D.C. on Jan. 5.", "He was late."],
    ["U.S. forces left.", "The U.S. Army stayed."],
    ["It costs $5.50 or 1,000.25.", "Is that OK?", "Yes!"],
    ["Mr. J. R. Smith of Acme Inc. resigned at 5 p.m. on Friday.", "Nobody cared."],
    ["(He left.)", "She stayed."],
    ['"I know."', "He said so.", "Then he left."],
    ["He said “Hello.”", "Then he left."],
    ["Wait... what?", "Really?!", "Yes."],
]


@pytest.mark.parametrize("sentences", SENTENCES)
def test_sentences_are_nltks(sentences: list[str]) -> None:
    assert chunk_text(" ".join(sentences), "sentence", 1, 0) == sentences


def test_words_are_nltks() -> None:
    words = chunk_text('He said: "I cannot, e.g. today." (Why?) It\'s 5.50—no', "word", 1, 0)
    expected = "He said : `` I can not , e.g . today . '' ( Why ? ) It 's 5.50 — no"
    assert words == expected.split()


@given(st.data())
def test_windows_by_definition(data: st.DataObject) -> None:
    """Windows cover all units in order, all but the last are full, and neighbours share `overlap` units."""
    content = data.draw(st.text("abcdefgh", min_size=2, max_size=60))
    length = data.draw(st.integers(1, 12))
    overlap = data.draw(st.integers(0, length - 1))
    chunks = chunk_text(content, "character", length, overlap)
    assert chunks[0] + "".join(chunk[overlap:] for chunk in chunks[1:]) == content
    assert all(len(chunk) == length for chunk in chunks[:-1])
    assert all(here[len(here) - overlap :] == after[:overlap] for here, after in pairwise(chunks))
    assert len(chunks) == 1 or overlap < len(chunks[-1]) <= length


@settings(deadline=None)
@given(st.text(min_size=0, max_size=80) | st.text(" .!?\n\"')(,“”—aB1", max_size=80), st.sampled_from(METHODS))
def test_any_text_gives_chunks_and_none_is_empty(content: str, method: SplitMethod) -> None:
    chunks = chunk_text(content, method, 3, 1)
    assert chunks
    assert all(chunks)


@pytest.mark.parametrize(("length", "overlap"), [(0, 0), (1, 1), (2, 3), (2, -1)])
def test_windows_must_advance(length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        chunk_text("some text", "word", length, overlap)


def test_overlaps_that_explode_are_refused() -> None:
    with pytest.raises(RequestError, match="smaller overlap") as caught:
        chunk_text("ab" * 100_000, "character", 100_000, 99_999)
    assert caught.value.fault is Fault.REFUSED


@pytest.mark.parametrize("method", ["word", "sentence"])
def test_a_text_on_which_nltk_gives_up_is_refused(monkeypatch: pytest.MonkeyPatch, method: SplitMethod) -> None:
    monkeypatch.setattr("nltk.redos.DEFAULT_TIMEOUT", 1e-9)
    with pytest.raises(RequestError, match="smaller contents"):
        chunk_text("Some text. " * 10_000, method, 1, 0)


@pytest.mark.parametrize(
    "unit",
    ["a", "你", ".", "a.", "a.)", '"', "'", "-", ",", " ", "1,.-", "\n", "\u00a0"],
)
def test_a_long_run_of_anything_is_split_in_linear_time(unit: str) -> None:
    content = "x" + unit * (100_000 // len(unit)) + "x. A"
    start = time.process_time()
    chunk_text(content, "word", 1000, 0)
    # A third of a second at worst. Quadratic time is a hundred times that, or the TimeoutError of NLTK.
    assert time.process_time() - start < 4


def test_short_sentences_of_which_no_two_are_alike() -> None:
    """The slowest text that is known: nothing in it can be remembered. NLTK takes 4 s."""
    rng = random.Random(1)
    content = " ".join(
        "".join(rng.choices("abcdefghijXYZABC0123456789'(,\"", k=3)) + rng.choice(".!?") for _ in range(20_000)
    )
    start = time.process_time()
    chunk_text(content, "word", 1000, 0)
    assert time.process_time() - start < 2.5


def test_a_pattern_is_left_out_only_where_it_cannot_match() -> None:
    """Each of NLTK's patterns is in our table, and none matches a text without what the table says it needs."""
    from nltk.tokenize.destructive import NLTKWordTokenizer as Plain

    from embedding.text.words import NEEDED

    rules = [*Plain.STARTING_QUOTES, *Plain.ENDING_QUOTES, *Plain.PUNCTUATION, Plain.PARENS_BRACKETS]
    patterns = [pattern for pattern, _ in [*rules, Plain.DOUBLE_DASHES]] + Plain.CONTRACTIONS2 + Plain.CONTRACTIONS3
    assert {pattern.pattern for pattern in patterns} - {r"\s+"} == set(NEEDED)
    rng = random.Random(2)
    letters = "ab.,:;?!'\"`«»“”‘’„–—-()[]{}<>@#$%&* cangimogtlewrdy5nNtTmM"
    for _ in range(3000):
        text = "".join(rng.choices(letters, k=rng.choice((1, 2, 4, 8))))
        for pattern in patterns:
            if not any(needed in text for needed in NEEDED.get(pattern.pattern, ("",))):
                assert not pattern.search(text), (pattern.pattern, text)


def test_asking_leaves_no_trace_in_the_model() -> None:
    def known() -> int:
        tokenizer = text._tokenizers().sentences.__self__  # type: ignore[attr-defined]
        return len(tokenizer._params.ortho_context)

    before = known()
    chunk_text(" ".join(f"Unheard{i}. Unseen{i} of." for i in range(50)), "sentence", 1, 0)
    assert known() == before


def test_an_item_that_cannot_be_split_fails_alone() -> None:
    long = "ab" * 100_000
    first, second, third = chunk_texts(["one two", long, "x"], "character", 50_000, 49_999)
    assert (first, third) == (["one two"], ["x"])
    assert isinstance(second, ItemError)
    assert "smaller overlap" in second.message


def test_threads_share_one_model_loaded_once() -> None:
    text._load_tokenizers.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: chunk_text("One. Dr. Two.", "sentence", 1, 0), range(32)))
    assert results == [["One.", "Dr. Two."]] * 32
    assert text._load_tokenizers.cache_info().misses == 1


def test_importing_the_module_does_not_import_nltk() -> None:
    code = "import sys, embedding.text.chunks; assert not {'nltk', 'punkt'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
