"""The tokens of `BpeTokenizer` are open_clip's, and neither long words nor long texts hold it up."""

import random
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from embedding.models.openclip.bpe import BpeTokenizer, head, merge

THEIRS = SimpleTokenizer()
OURS = BpeTokenizer(THEIRS)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABETS = [
    "a",
    "ab",
    "aeinst",
    LETTERS,
    LETTERS + LETTERS.upper() + " ",
    "ha ",
    "0123456789., ",
    "!?.-'\"&;#<>/w ",
    "éèàüßçñ ΣσςİıǅŒ",
    "кошка ",
    "図鑑日本語の ",
    "😂😍🐈\u200d⬛❤\ufe0f🏽 ",
    "Ã©â€™ \xa0",
    "\0\x1b[1m\r\n\t\x85\u2028 a",
    "ﬁＡｚ“”\u0301\ud83d\ude02 e",
]
PIECES = [
    "a photo of a cat",
    "it's don't we'll I'm they've he'd you're",
    "&amp;amp;lt;",
    "&eacute",
    "&#10;",
    "&NewLine;",
    "<b>",
    "<start_of_text>",
    "<END_OF_TEXT>",
    "</w>",
    "antidisestablishmentarianism",
    "congratulations",
    "schÃ¶n",
    "ΟΔΟΣ",
    "\n",
]


def _any_text(generator: random.Random) -> str:
    parts = []
    for _ in range(generator.randint(1, 3)):
        parts.append("".join(generator.choices(generator.choice(ALPHABETS), k=generator.randint(0, 40))))
        parts.append(generator.choice(PIECES) if generator.random() < 0.2 else "")
    return generator.choice(["", " "]).join(parts) * generator.choice([1, 1, 1, 1, 2, 7])


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _symbols(word: str) -> list[str]:
    return [*word[:-1], word[-1] + "</w>"]


def test_5000_texts() -> None:
    generator = random.Random(0)
    texts = [_any_text(generator) for _ in range(5000)]
    assert torch.equal(OURS(texts), THEIRS(texts))
    assert [OURS.encode(text) for text in texts[:1000]] == [THEIRS.encode(text) for text in texts[:1000]]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=200) | st.text(st.sampled_from("aehrstw' &;\n"), max_size=200), max_size=3))
def test_any_texts(texts: list[str]) -> None:
    theirs = THEIRS(texts) if texts else torch.zeros(0, 77, dtype=torch.long)
    assert torch.equal(OURS(texts), theirs)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_merges(data: st.DataObject) -> None:
    """Of vocabularies too whose merges are in an order that no training gives, so that passes wake lower ranks."""
    symbols = ["a", "b", "a</w>", "b</w>"]
    merges: dict[tuple[str, str], int] = {}
    for rank in data.draw(st.permutations(range(data.draw(st.integers(1, 16))))):
        pair = data.draw(st.tuples(st.sampled_from(symbols), st.sampled_from(symbols)))
        merges[pair] = rank
        symbols.append("".join(pair))
    word = data.draw(st.text("ab", min_size=1, max_size=60))
    theirs = object.__new__(SimpleTokenizer)
    theirs.cache, theirs.bpe_ranks = {}, merges
    assert merge(_symbols(word), merges) == theirs.bpe(word).split(" ")


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_words_of_all_lengths(alphabet: str) -> None:
    generator = random.Random(0)
    for length in (*range(1, 70), 150, 400):
        letters = "".join(generator.choices(alphabet, k=length)).encode(errors="replace")
        word = "".join(THEIRS.byte_encoder[byte] for byte in letters)
        assert merge(_symbols(word), THEIRS.bpe_ranks) == THEIRS.bpe(word).split(" ")


@pytest.mark.parametrize("length", [1, 2, 3, 16, 77, 200])
def test_context_lengths(length: int) -> None:
    texts = ["", "a cat", "it's a cat &amp; a dog", "word " * 76, "word " * 75, "word " * 74, "z" * 100, "図鑑" * 200]
    assert torch.equal(OURS(texts, length), THEIRS(texts, length))
    assert torch.equal(OURS(texts[1], length), THEIRS(texts[1], length))


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_cleanings(clean: str) -> None:
    theirs = SimpleTokenizer(clean=clean, additional_special_tokens=["<extra>"])
    generator = random.Random(1)
    texts = ["A  _Cat_, <extra> <EXTRA>\n&amp; <start_of_text>", *(_any_text(generator) for _ in range(500))]
    assert torch.equal(BpeTokenizer(theirs)(texts), theirs(texts))


def test_reductions() -> None:
    theirs = SimpleTokenizer(reduction_mask="simple")
    texts = ["a cat", "one two three four five six seven eight nine ten " * 10]
    random.seed(0)
    expected = theirs(texts)
    random.seed(0)
    assert torch.equal(BpeTokenizer(theirs)(texts), expected)


@pytest.mark.parametrize("separator", [" ", "\n", "    \n\n  ", "  "])
@pytest.mark.parametrize("words", ["ASCII isn't <b>all</b>", "Ein Bär – 図鑑 и кот 🐈 ΟΔΟΣ", "schÃ¶n &amp; gut"])
def test_long_texts(words: str, separator: str) -> None:
    text = separator.join([words] * 1500)
    assert len(head(text, 75)) <= 4800
    assert torch.equal(OURS(text), THEIRS(text))


@pytest.mark.parametrize("tail", ["&eacute;", "Ã©" * 50, " Ã " * 50, "\u0301", "<b>", "\x1b[", "é\x85", "âÃ©"])
def test_what_follows_a_cut_changes_nothing(tail: str) -> None:
    """In the same line. The start is ASCII, but not plain."""
    text = "a\x7fb \x1b[31mred\x1b[0m cat's\t " * 300 + tail * 500
    assert torch.equal(OURS(text), THEIRS(text))


def test_blanks_do_not_use_up_the_head() -> None:
    text = "\n".join(f"name{' ' * 500}{number}" for number in range(60))
    assert torch.equal(OURS(text), THEIRS(text))


@pytest.mark.parametrize("alphabet", [LETTERS, "a", "ha", "!?", "図鑑日本語", "😂😍"])
def test_long_words_take_no_time(alphabet: str) -> None:
    word = "".join(random.Random(0).choices(alphabet, k=100_000))
    assert _seconds(lambda: OURS(word)) < 0.5
    assert torch.equal(OURS(word), THEIRS(word[:1500]))


def test_merging_100000_symbols() -> None:
    word = "".join(random.Random(0).choices(LETTERS, k=100_000))
    assert _seconds(lambda: merge(_symbols(word), THEIRS.bpe_ranks)) < 2
    assert len(merge(_symbols("a" * 100_000), THEIRS.bpe_ranks)) < 50_000


@pytest.mark.parametrize(
    "text",
    ["word ", "Bär ", "\n", " ", "\0\n", "\r\n", "&" + "amp;" * 250_000, "é" + "\u0301\u0323" * 500_000, "&", "<b>"],
)
def test_a_megabyte_takes_no_time(text: str) -> None:
    assert _seconds(lambda: OURS(text * (1_000_000 // len(text)))) < 1


@pytest.mark.parametrize("entity", ["&#", "&amp;#", "＆#"])
def test_entities_of_too_many_digits(entity: str) -> None:
    """html.unescape raises at them, and with it open_clip."""
    text = f"a cat {entity}{'9' * 4500} \ud800"
    with pytest.raises(ValueError, match="4300 digits"):
        THEIRS(text)
    assert OURS(text)[0, :3].tolist() == THEIRS("a cat")[0, :3].tolist()


def test_words_are_not_remembered_for_ever() -> None:
    tokenizer = BpeTokenizer(SimpleTokenizer())
    for number in range(70_000):
        tokenizer.encode("".join(LETTERS[int(digit)] for digit in str(number)))
    info = tokenizer._remembered.cache_info()
    assert info.currsize == info.maxsize == 65_536
    tokenizer.encode("z" * 33)
    assert tokenizer._remembered.cache_info().misses == info.misses
    assert len(tokenizer._tokenizer.cache) == 2
