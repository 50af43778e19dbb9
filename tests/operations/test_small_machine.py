"""config/edge.yaml with a ViT-B-32 while large photographs come in, in a control group of 4 GiB: every request is
answered with the right vectors or refused in words, and the kernel kills nothing.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image

from benchmarks.lib import pictures
from benchmarks.lib.image_host import ImageHost
from benchmarks.lib.models import loaded, vit_b_32
from benchmarks.lib.places import ROOT
from benchmarks.lib.process import descendants, free_port
from embedding.image.pixels import preprocess
from embedding.models.model import normalize
from tests.support.launched import READY, launched
from tests.support.marqo_client import MarqoClient

LIMIT = 4 * 2**30
HIERARCHIES = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.oom_control"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
)
"""Of cgroup v1 and v2: the folder, the file of a group with its limit, and that with the count of its kills."""
CLIENTS, REQUESTS = 3, 6


class Group:
    """A control group with a limit of memory."""

    def __init__(self, folder: Path, kills: str) -> None:
        self.folder, self._kills = folder, folder / kills

    def join(self) -> None:
        """Takes the calling process, and with it all that it starts."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def kills(self) -> int:
        counts = dict(line.split() for line in self._kills.read_text().splitlines())
        return int(counts["oom_kill"])


@pytest.fixture
def group() -> Iterator[Group]:
    for root, limit, kills in HIERARCHIES:
        folder = root / f"marqo-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(LIMIT))
            yield Group(folder, kills)
            return
        except OSError:
            continue
        finally:
            folder.rmdir()
    pytest.skip("no control group with a limit of memory can be made here")


def small_machine(port: int, models: Path) -> dict[str, Any]:
    """config/edge.yaml, with models of a folder and pictures of this machine."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "edge.yaml").read_text())
    config["http_options"]["port"] = port
    arguments = config["applications"][0]["args"]
    arguments["preprocessor"]["fetch"]["allowed_networks"] = "127.0.0.0/8"
    arguments["encoder"]["models"] = {"model_sources": ["registry", "path"], "path_roots": [str(models)]}
    return config


def bomb() -> bytes:
    """A PNG of 64 megapixels, a few kilobytes large."""
    file = BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    return file.getvalue()


def replicas(pid: int) -> set[int]:
    return {p.pid for p in descendants(pid) if "ray::" in " ".join(_words(p))}


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_large_photographs_fit_into_four_gibibytes(group: Group, tmp_path: Path) -> None:
    checkpoint, paths = vit_b_32(), pictures.large()
    files = {path.name: path.read_bytes() for path in paths} | {"bomb.png": bomb()}
    port = free_port()
    config = small_machine(port, checkpoint.path.parent)
    with (
        ImageHost(files) as host,
        launched(tmp_path, config, before=group.join) as server,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        server.wait_for_output(READY)
        client = MarqoClient(f"http://127.0.0.1:{port}")
        before = replicas(server.process.pid)
        # Its architecture is looked at first, and tells of 1.6 GiB.
        large = {**checkpoint.properties, "name": "ViT-L-14", "dimensions": 768}
        urls = [host.url(f"/ok/{path.name}") for path in paths] * 2

        def ask(_: int) -> np.ndarray:
            return client.embed(urls, "image", "bench/vit-b-32", checkpoint.properties)

        answers = list(pool.map(ask, range(REQUESTS)))
        (refused,) = client.results([host.url("/ok/bomb.png")], "image", "bench/vit-b-32", checkpoint.properties)
        status, body = client.vectorise(["a"], model="bench/large", properties=large)
        texts = client.embed(["a red circle"], model="bench/vit-b-32", properties=checkpoint.properties)
        assert replicas(server.process.pid) == before
    assert group.kills() == 0, server.output
    assert "64000000 pixels" in refused["error_message"]
    assert status == 400
    assert "more than the 1073741824 that this server keeps" in str(body)
    assert texts.shape == (1, checkpoint.dimensions)
    model = loaded(checkpoint)
    pixels = np.stack([preprocess(path.read_bytes(), model.info.image, path.name) for path in paths])
    expected = np.tile(normalize(model.encode_images([pixels])), (2, 1))
    for rows in answers:
        assert (rows * expected).sum(axis=1) == pytest.approx(1, abs=1e-3)
