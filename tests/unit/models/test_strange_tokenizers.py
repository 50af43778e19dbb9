"""Tokenizers of strangers: tried before they are believed, and bounded in each call."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest

from benchmarks.lib.places import ROOT
from embedding.errors import Fault, RequestError
from embedding.models.files.options import LoadOptions
from embedding.models.model import Model
from embedding.models.tokenizers.dedicated_thread import DedicatedThread
from tests.support.hf import load, refusal, same, tokenizer, vectors
from tests.support.hostile_repositories import (
    TOKENIZERS,
    Files,
    expands,
    hangs_at,
    pads,
    panics_at,
    reads_a_file,
    write,
)
from tests.support.tiny_bert import TEXTS, files_of, reference, save_bert
from tests.support.waiting import until

OPTIONS = LoadOptions()
RARE = "ζ"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("good") / "bert")


@pytest.fixture(scope="module")
def files(good: Path) -> Files:
    return files_of(good)


@pytest.fixture(scope="module")
def neighbour(good: Path) -> Model:
    return load(good)


def refused(call: Callable[[], object], fault: Fault = Fault.REFUSED) -> str:
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.fault is fault
    return caught.value.message


class Watch:
    """Embeds texts of another model all the while, and looks at this process's memory."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._over = threading.Event()
        self.waits: list[float] = []
        self.grown = 0

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """The other model was not held up, and little memory was taken."""
        assert sorted(self.waits)[int(0.95 * len(self.waits))] < 1
        assert self.grown < 200 * 2**20

    def _run(self) -> None:
        process = psutil.Process()
        before = process.memory_info().rss
        while not self._over.is_set():
            start = time.perf_counter()
            self._model.encode_texts([self._model.tokenize(["a red circle"])])
            self.waits.append(time.perf_counter() - start)
            self.grown = max(self.grown, process.memory_info().rss - before)


@pytest.mark.parametrize("case", TOKENIZERS)
def test_hostile_tokenizers_are_rejected_at_load(tmp_path: Path, files: Files, neighbour: Model, case: str) -> None:
    """One of these ended the process that loaded it, another left its requests without an answer."""
    folder = write(TOKENIZERS[case](files), tmp_path / "repository")
    with Watch(neighbour) as watch:
        message = refusal(localpath=str(folder))
    assert "its tokenizer cannot be used" in message
    watch.check()


@pytest.mark.parametrize("key", ["vocab", "vocab_file", "tokenizer_file"])
def test_whether_a_file_exists_is_not_told(tmp_path: Path, files: Files, key: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("topsecret\n")
    messages = set()
    for number, path in enumerate((secret, tmp_path / "nowhere", Path("/dev/zero"))):
        folder = write(reads_a_file(files, path, key), tmp_path / str(number))
        try:
            model = load(folder)
            messages.add(str(model.tokenize(["topsecret a"])))
        except RequestError as error:
            messages.add(error.message)
    assert len(messages) == 1
    assert "secret" not in messages.pop()


def test_padding_of_a_repository_has_no_effect(tmp_path: Path, files: Files) -> None:
    rows = tokenizer(write(pads(files), tmp_path / "x"), OPTIONS)(["a red circle"], 128, "text")
    assert [len(row) for row in rows["input_ids"]] == [5]


@pytest.mark.parametrize(("hostile", "length"), [(panics_at, 200), (hangs_at, 200), (expands, 200)])
def test_what_only_some_texts_do(
    tmp_path: Path, files: Files, neighbour: Model, hostile: Callable[[Files, str], Files], length: int
) -> None:
    """No trial finds it: each such text is its request's error, the tokenizer goes on, and after two of them it is
    left alone for a while, so that hundreds wait for nothing."""
    process = tokenizer(write(hostile(files, RARE), tmp_path / "x"), OPTIONS)
    assert process(["a red circle"], 128, "text")["input_ids"]
    with Watch(neighbour) as watch:
        refused(lambda: process([RARE * length], 128, "text"))
        assert process(["a red circle"], 128, "text")["input_ids"]
        refused(lambda: process([RARE * length], 128, "text"))
        start = time.monotonic()
        for _ in range(260):
            assert "ended twice" in refused(lambda: process([RARE * length], 128, "text"))
        assert time.monotonic() - start < 10  # one that is tried takes half a second
    watch.check()


def test_260_panicking_requests_at_a_time(tmp_path: Path, files: Files, neighbour: Model) -> None:
    """As an encoder runs them: each has an answer, soon, and none waits in a thread that others need."""
    process = tokenizer(write(panics_at(files, RARE), tmp_path / "x"), OPTIONS)

    async def main() -> list[BaseException | object]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(process.thread, process, [RARE * 200], 128, "text") for _ in range(260)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)

    with Watch(neighbour) as watch:
        answers = asyncio.run(main())
    assert all(isinstance(answer, RequestError) for answer in answers)
    watch.check()


def test_slow_calls_do_not_queue_up() -> None:
    thread = DedicatedThread()
    assert thread.submit(lambda: 1).result() == 1
    for _ in range(4):
        thread.spent(1.0)
    go = threading.Event()
    waiting = [thread.submit(go.wait) for _ in range(2)]
    assert "slow" in refused(lambda: thread.submit(go.wait), Fault.OVERLOADED)
    go.set()
    assert all(future.result() for future in waiting)
    thread.spent(0.0)


def test_limits_of_memory_and_time(good: Path) -> None:
    for options in (LoadOptions(tokenizer_bytes=2**16), LoadOptions(tokenizer_load_s=0.001)):
        assert "tokenizer_load_s, tokenizer_bytes" in refused(partial(tokenizer, good, options))


def processes_of(pid: int) -> list[psutil.Process]:
    """Those of tokenizers, and the one that forks them."""
    children = psutil.Process(pid).children(recursive=True)
    module = "embedding.models.tokenizers.fork_server"
    return [child for child in children if not ended(child) and module in child.cmdline()]


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_tokenizer_that_was_killed_comes_back(good: Path) -> None:
    """Also with the process that forks them: all tokenizers end with it, and start again when they are used."""
    process = tokenizer(good, OPTIONS)
    expected = process(TEXTS, 128, "text")
    children = processes_of(os.getpid())
    for child in children:
        child.kill()
    until(lambda: all(ended(child) for child in children))
    assert process(TEXTS, 128, "text") == expected


def test_closed_tokenizers_leave_no_process(good: Path) -> None:
    process = tokenizer(good, OPTIONS)
    (new,) = [child for child in processes_of(os.getpid()) if child.pid == process.pid]
    del process
    until(lambda: ended(new))


SERVER = """
import sys, time
from functools import partial
from pathlib import Path
from embedding.models.files.options import LoadOptions
from embedding.models.hf.staging import staged_tokenizer
from embedding.models.tokenizers.process import Loading, TokenizerProcess
process = TokenizerProcess(Loading(partial(staged_tokenizer, Path(sys.argv[1])), 128), LoadOptions())
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def server(good: Path) -> Iterator[subprocess.Popen[str]]:
    secrets = {"HF_TOKEN": "hf_topsecret", "AWS_SECRET_ACCESS_KEY": "topsecret"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(good)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | secrets
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_all_end_with_the_server(server: subprocess.Popen[str]) -> None:
    children = processes_of(server.pid)
    assert len(children) == 2
    for child in children:
        environment = child.environ()
        assert "topsecret" not in str(environment)
        assert environment["HF_HUB_OFFLINE"] == "1"
        assert Path(f"/proc/{child.pid}/fd/0").readlink() == Path("/dev/null")
    server.send_signal(signal.SIGKILL)
    server.wait()
    until(lambda: all(ended(child) for child in children))


def test_a_model_with_its_own_process_gives_the_same_vectors(good: Path, neighbour: Model) -> None:
    with ThreadPoolExecutor(4) as threads:
        for rows in threads.map(lambda _: vectors(neighbour), range(8)):
            same(rows, reference(good, TEXTS, "mean"))
