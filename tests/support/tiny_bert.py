"""Text models of a few thousand weights in the files that transformers and sentence-transformers expect."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

WIDTH = 24
WORDS = ["a", "red", "blue", "green", "circle", "square", "star", "on", "the", "big", "small", "word"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ish", "1", "2", ",", ".", "!"]
TEXTS = ["a red circle", "", "the big blue stars on the small green square !", "zebra", "word " * 300]


def save_bert(folder: Path, seed: int = 0, pooling: str | None = None, positions: int = 512, layers: int = 2) -> Path:
    """Writes config, weights, tokenizer and, with `pooling`, the pooling file of sentence-transformers."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=positions,
        initializer_range=0.5,  # or all vectors would be much alike
    )
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder, VOCABULARY)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes}))
        (folder / "modules.json").write_text("[]")
    return folder


def save_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    """As a hub repository holds them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def archived(folder: Path, archive: Path, under: str = "") -> Path:
    """Packs a folder; the suffix says how. With `under`, everything is in a folder of that name."""
    names = {f"{under}{name}": folder / name for name in files_of(folder)}
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, path in names.items():
                file.write(path, name)
        return archive
    with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as tar:
        for name, path in names.items():
            tar.add(path, name)
    return archive


def reference(folder: Path, texts: list[str], pooling: str, tokens: int = 128, **options: Any) -> np.ndarray:
    """What transformers itself gives: text by text, so without any padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()
    rows = []
    for text in texts:
        inputs = tokenizer([text], truncation=True, max_length=tokens, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs)[0][0]
        rows.append((hidden[0] if pooling == "cls" else hidden.mean(0)).numpy())
    return np.stack(rows)
