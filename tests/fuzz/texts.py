"""Documents, above all such as are slow to split: our chunks against those of plain NLTK."""

from __future__ import annotations

from random import Random
from typing import Any

from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktSentenceTokenizer
from punkt import load_model

from embedding.text.chunks import chunk_text
from tests.fuzz.target import Finding

PIECES = [
    "a", "B", "x.", "U.S.", "Dr.", "Mr", "etc.", "i.e.", "A.", "b.", "5", "1,000.", "-3.5", "..", "...", ". . .", "'",
    "''", '"', "``", "`", "can", "not", "cannot", "CANNOT", "gimme", "lemme", "gonna ", "wanna ", "gotta", "d'ye",
    "more'n", " 'tis ", " 'twas ", "n't", "'s", "'ll", "»", "«", "“", "”", "„", "‘", "’", "—", "–", "(", ")", "[", "]",
    "{", "}", ">", "<", "--", "-", "\n", "\n\n", "\t", " ", " ", "  ", "!", "?", "?!", ",", ":", ";", "@",
    "#", "*", "%",
    "é", "İ", "ß", "你", "。", "٣", "²", "ﬆ", "K", "he", "The", "It", "\u2028", "\u00a0", "\x85", "\x1c", "\r\n", "\0",
    "n", "m", "tT", "\ufeff", "\U0001f468", "e\u0301",
]  # fmt: skip
COMPARED_CHARS = 1000
REPEATED_CHARS = 20_000


class Texts:
    """Documents through `chunk_text`. An input is a text in UTF-8: short ones are compared with NLTK, long ones timed.

    A long one repeats a short one: time that grows with the square of the length shows there.
    """

    name = "texts"
    # Twenty thousand characters of nothing but short sentences take 0.2 s.
    deadline_s = 1.0
    memory_bytes = 64 * 2**20

    def __init__(self) -> None:
        self._sentences, self._words = _plain_nltk()

    def make(self, seed: int, index: int) -> bytes:
        """See `Target.make`."""
        rng = Random(seed << 40 | index)
        if index % 20 == 0:
            unit = "".join(rng.choices(PIECES, k=rng.choice((1, 2, 3, 4))))
            text = rng.choice(PIECES) + unit * (REPEATED_CHARS // len(unit)) + rng.choice(PIECES)
        else:
            glue = rng.choice((" ", "", "", "."))
            text = "".join(rng.choice(PIECES) + rng.choice(("", glue)) for _ in range(rng.choice((3, 6, 12, 40))))
        return text.encode()

    def run(self, data: bytes, index: int) -> str:
        """Chunks, each of which NLTK would have given."""
        text = data.decode(errors="replace")
        words = chunk_text(text, "word", 1, 0)
        if len(text) > COMPARED_CHARS:
            return "in time"
        sentences = chunk_text(text, "sentence", 1, 0)
        if len(text) > 1 and text.strip():
            _same("sentences", sentences, [sentence for sentence in self._sentences(text) if sentence])
            _same("words", words, [word for sentence in self._sentences(text) for word in self._words(sentence)])
        return "as NLTK's"


def _same(what: str, ours: list[str], expected: list[str]) -> None:
    if ours != expected:
        raise Finding(f"other {what}", f"{ours} instead of {expected}")


def _plain_nltk() -> tuple[Any, Any]:
    """NLTK's own code and nothing of ours, with the English model."""
    tokenizer = PunktSentenceTokenizer()
    model = load_model("english")
    for table in ("abbrev_types", "collocations", "sent_starters"):
        setattr(tokenizer._params, table, set(getattr(model, table)))
    tokenizer._params.ortho_context.update(model.ortho_context)
    return tokenizer.tokenize, NLTKWordTokenizer().tokenize
