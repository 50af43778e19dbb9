"""open_clip's wrapper around a transformers tokenizer that runs in a subprocess."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from open_clip.tokenizer import HFTokenizer, get_clean_fn

from embedding.models.files.options import LoadOptions
from embedding.models.hf.staging import staged_tokenizer
from embedding.models.tokenizers.process import Loading, TokenizerProcess


class OpenClipHfTokenizer(HFTokenizer):  # type: ignore[misc]
    """A callable from texts to int64 tokens, shape (n, context length). Thread-safe.

    Args:
        folder: of the tokenizer's repository.
        context_length: tokens of each text, cut off or padded.
        settings: limits of the subprocess.
        tokenizer_mode, clean, strip_sep_token, language: as in open_clip's class.
        options: for transformers.
    """

    def __init__(
        self,
        folder: Path,
        context_length: int,
        settings: LoadOptions,
        tokenizer_mode: str | None = None,
        clean: str = "whitespace",
        strip_sep_token: bool = False,
        language: str | None = None,
        **options: Any,
    ) -> None:
        # The base class's __init__ is not called, since it loads the tokenizer into this process.
        self.tokenizer_mode = tokenizer_mode or ""
        self.context_length = context_length
        self.clean_fn = get_clean_fn(clean)
        self.strip_sep_token = strip_sep_token
        stage = partial(staged_tokenizer, folder)
        loading = Loading(stage, context_length, options=tuple(options.items()), language=language)
        self.tokenizer = _Tokenizer(TokenizerProcess(loading, settings), context_length)

    @property
    def thread(self) -> Executor:
        """The executor in which calls must run."""
        thread: Executor = self.tokenizer.thread
        return thread


class _Tokenizer:
    """The part of a transformers tokenizer's interface that open_clip's wrapper uses."""

    def __init__(self, process: TokenizerProcess, length: int) -> None:
        self._process = process
        self._length = length
        self.thread = process.thread
        for name in ("pad", "bos", "eos", "sep", "cls"):
            setattr(self, f"{name}_token_id", process.facts[f"{name}_token_id"])

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True, **_: Any) -> Any:
        if not add_special_tokens:  # the mode `clips`, which wants lists
            return self._process(texts, self._length, "clips")
        rows = self._process(texts, self._length, "clip")["input_ids"]
        return SimpleNamespace(input_ids=torch.tensor(rows, dtype=torch.int64).reshape(len(texts), -1))
