"""Files of weights: sources, policy, downloads. Real servers on loopback: HTTP, the hub's protocol, moto's S3."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from hub_host import HubHost
from image_host import ImageHost
from moto.server import ThreadedMotoServer
from pydantic import ValidationError

from embedding.errors import Fault, RequestError
from embedding.models.failure import unloadable
from embedding.models.options import LoadOptions
from embedding.models.properties import HfProperties, OpenClipProperties
from embedding.models.store import Store
from embedding.models.weights import Weights
from embedding.registry import DEMO_MODEL, lookup

ALL = ("registry", "hub", "url", "s3", "path")
LOOPBACK = "127.0.0.0/8"
CONTENT = os.urandom(300_000)
TOKEN = "hf_topsecrettoken"
SECRET = "topsecretkey/abcdefghijklmnop"


def options(folder: Path, **changes: Any) -> LoadOptions:
    """Everything allowed, of this machine."""
    everything = {
        "model_sources": ALL,
        "path_roots": (folder / "models",),
        "cache_dir": folder / "cache",
        "allowed_networks": LOOPBACK,
        "connect_timeout_s": 5,
        "read_timeout_s": 5,
    }
    return LoadOptions(**{**everything, **changes})


def properties(**location: Any) -> OpenClipProperties:
    return OpenClipProperties.model_validate({"name": "ViT-B-32", "dimensions": 8, **location})


def refusal(weights: Weights, auth: dict[str, Any] | None = None, **location: Any) -> str:
    with pytest.raises(RequestError) as caught:
        weights.checkpoint(properties(**location), auth)
    assert caught.value.fault is Fault.REFUSED
    return caught.value.message


def left(folder: Path) -> list[str]:
    """What a model's files could be mistaken for: everything in the cache but locks."""
    files = (path for path in (folder / "cache").rglob("*") if path.is_file())
    return sorted(path.name for path in files if path.suffix != ".lock" and path.name != "CACHEDIR.TAG")


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with ImageHost({"model.pt": CONTENT, "archive.tar.gz": _tar({"config.json": b"{}"})}) as host:
        yield host


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubHost]:
    files = {"open_clip_pytorch_model.bin": CONTENT, "config.json": b"{}", "deep/tokenizer.json": b"[]"}
    with HubHost({"me/open": files, "me/gated": files}, gated={"me/gated": TOKEN}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    yield f"http://{address}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client with all rights, and an environment without credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="admin", aws_secret_access_key="admin")
    client.create_bucket(Bucket="weights")
    client.put_object(Bucket="weights", Key="deep/model.pt", Body=CONTENT)
    client.put_object(Bucket="weights", Key="public.pt", Body=CONTENT, ACL="public-read")
    return client


# --- What operators allow ---

LOCATIONS: dict[str, dict[str, Any]] = {
    "url": {"url": "http://127.0.0.1:1/model.pt"},
    "s3": {"modelLocation": {"s3": {"Bucket": "weights", "Key": "model.pt"}}},
    "hub": {"modelLocation": {"hf": {"repoId": "me/open", "filename": "model.pt"}}},
    "path": {"localpath": "/etc/hostname"},
}


@pytest.mark.parametrize("source", LOCATIONS)
def test_a_source_that_is_not_allowed_names_the_setting(tmp_path: Path, source: str) -> None:
    sources = tuple(name for name in ALL if name != source)
    changes: dict[str, Any] = {"path_roots": ()} if source == "path" else {}
    message = refusal(Weights(options(tmp_path, model_sources=sources, **changes)), **LOCATIONS[source])
    assert "Unable to load model" in message
    assert "model_sources" in message
    assert f"'{source}'" in message


def test_by_default_hub_and_registry_are_allowed(tmp_path: Path) -> None:
    weights = Weights(LoadOptions(cache_dir=tmp_path))
    for source in ("url", "s3", "path"):
        assert "model_sources" in refusal(weights, **LOCATIONS[source])
    weights.check_hub("anybody/anything")
    assert weights.checkpoint(properties(**_localpath_of_demo())).is_file()


def test_the_registry_alone(tmp_path: Path) -> None:
    weights = Weights(LoadOptions(cache_dir=tmp_path, model_sources=("registry",)))
    weights.check_hub("open_clip/ViT-B-32/openai")
    weights.check_hub("hf-hub:Marqo/marqo-fashionCLIP")
    weights.check_hub("sentence-transformers/all-MiniLM-L6-v2")
    for name in ("open_clip/ViT-B-32/nobody-knows", "hf-hub:anybody/anything", "anybody/anything"):
        with pytest.raises(RequestError, match="model_sources"):
            weights.check_hub(name)
    assert weights.checkpoint(properties(**_localpath_of_demo())).is_file()


def test_without_the_registry_its_files_are_closed(tmp_path: Path) -> None:
    weights = Weights(LoadOptions(cache_dir=tmp_path, model_sources=("hub",)))
    assert "model_sources" in refusal(weights, **_localpath_of_demo())


def test_paths_stay_under_their_roots(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "models-not"
    root.mkdir()
    outside.mkdir()
    (root / "model.pt").write_bytes(CONTENT)
    (outside / "model.pt").write_bytes(CONTENT)
    (root / "way-out.pt").symlink_to(outside / "model.pt")
    (root / "way-in.pt").symlink_to(root / "model.pt")
    (root / "folder").symlink_to(outside)
    weights = Weights(options(tmp_path))
    assert weights.checkpoint(properties(localpath=str(root / "way-in.pt"))) == root / "model.pt"
    for path in (outside / "model.pt", root / "way-out.pt", root / "folder/model.pt", f"{root}/../models-not/model.pt"):
        assert "path_roots" in refusal(weights, localpath=str(path))
    # Whether something is there is nobody's business.
    assert refusal(weights, localpath=f"{outside}/model.pt") == refusal(weights, localpath=f"{outside}/none.pt")
    for path in (root / "none.pt", root):
        assert "not a file" in refusal(weights, localpath=str(path))


def test_options_that_make_no_sense() -> None:
    for changes in (
        {"model_sources": ("path",)},
        {"path_roots": ("/models",)},
        {"model_sources": ("path",), "path_roots": ("models",)},
        {"model_sources": ("everywhere",)},
        {"allowed_networks": "somewhere"},
        {"max_checkpoint_bytes": -1},
        {"unheard_of": 1},
    ):
        with pytest.raises(ValidationError):
            LoadOptions(**changes)


def test_the_environment_says_where_downloads_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARQO_MODEL_CACHE_PATH", str(tmp_path / "mine"))
    assert LoadOptions().cache_dir == tmp_path / "mine"


# --- URLs ---


def test_a_url(tmp_path: Path, host: ImageHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    weights = Weights(options(tmp_path))
    path = weights.checkpoint(properties(url=host.url("/ok/model.pt")))
    assert path.read_bytes() == CONTENT
    assert path.name == "model.pt"
    assert "downloading http://127.0.0.1" in caplog.text
    assert "downloaded http://127.0.0.1" in caplog.text
    assert weights.checkpoint(properties(url=host.url("/ok/model.pt"))) == path
    assert len(host.requests) == 1


def test_the_whole_url_is_the_key(tmp_path: Path, host: ImageHost) -> None:
    """Marqo's own servers go by the base name, and take one model for another."""
    host.files["other"] = b"other"
    weights = Weights(options(tmp_path))
    first = weights.checkpoint(properties(url=host.url("/ok/model.pt")))
    other = weights.checkpoint(properties(url=host.url("/chunked/model.pt")))
    query = weights.checkpoint(properties(url=host.url("/ok/model.pt?version=2")))
    assert len({first, other, query}) == 3
    assert len(host.requests) == 3


def test_redirects(tmp_path: Path, host: ImageHost) -> None:
    weights = Weights(options(tmp_path))
    away = host.url(f"/redirect-to?url={host.url('/ok/model.pt')}&code=302")
    assert weights.checkpoint(properties(url=away)).read_bytes() == CONTENT
    assert "redirects" in refusal(weights, url=host.url("/redirect/99"))


FAULTS = {
    "/status/403": "403",
    "/status/500": "500",
    "/ok/unknown": "404",
    "/cut": "cut short",
    "/cut-chunked": "cut short",
    "/reset": "closed the connection",
    "/garbage": "not valid HTTP",
    "/location-missing": "302",
    "/lie-length": "max_checkpoint_bytes",
    "/endless": "max_checkpoint_bytes",
    "/hang": "took too long",
    "/drip": "took too long",
    "/redirect-to?url=file:///etc/passwd&code=302": "scheme",
}


@pytest.mark.parametrize("path", FAULTS)
def test_a_download_that_fails_leaves_nothing(tmp_path: Path, host: ImageHost, path: str) -> None:
    limits = options(tmp_path, max_checkpoint_bytes=2**20, read_timeout_s=0.5, download_timeout_s=2)
    message = refusal(Weights(limits), url=host.url(path))
    assert message.startswith("Unable to load model: downloading http://127.0.0.1")
    assert FAULTS[path] in message
    assert left(tmp_path) == []


def test_a_disk_without_room_is_told_before_the_download(tmp_path: Path, host: ImageHost) -> None:
    message = refusal(Weights(options(tmp_path, max_checkpoint_bytes=0)), url=host.url("/lie-length"))
    assert "disk of cache_dir is full" in message
    assert left(tmp_path) == []


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """/dev/full is Linux's own full disk."""

    def write(path: Path) -> None:
        path.write_bytes(b"the beginning")
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(CONTENT)

    with pytest.raises(RequestError, match=r"full while 'model\.pt'"):
        Store(tmp_path / "cache", 5).get("key", "model.pt", write)
    assert left(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path, host: ImageHost) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "cache_dir cannot hold" in refusal(Weights(options(tmp_path)), url=host.url("/ok/model.pt"))


def test_the_hash_of_a_url(tmp_path: Path, host: ImageHost) -> None:
    weights = Weights(options(tmp_path))
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    assert weights.checkpoint(properties(url=f"{host.url('/ok/model.pt')}#sha256={right}")).read_bytes() == CONTENT
    message = refusal(weights, url=f"{host.url('/ok/model.pt')}#sha256={wrong}")
    assert right in message
    assert wrong in message
    assert left(tmp_path) == ["model.pt"]


def test_the_guard(tmp_path: Path, host: ImageHost) -> None:
    """On the first host and on every other."""
    weights = Weights(options(tmp_path, allowed_networks=""))
    port = host.port
    for name in ("127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
        message = refusal(weights, url=f"http://{name}:{port}/ok/model.pt")
        assert "Unable to load model" in message
    assert "allowed_networks" in refusal(weights, url=f"http://127.0.0.1:{port}/ok/model.pt")
    assert host.connections == 0
    redirecting = Weights(options(tmp_path, allowed_networks="127.0.0.1/32"))
    message = refusal(redirecting, url=host.url("/redirect-to?url=http://169.254.169.254/latest&code=302"))
    assert "`169.254.169.254` is not publicly routable" in message


@pytest.mark.parametrize(
    "url", ["", "model.pt", "file:///etc/passwd", "ftp://example.com/x", "http://", "\0", "a" * 99]
)
def test_what_is_no_url(tmp_path: Path, url: str) -> None:
    assert "not a valid http(s) URL" in refusal(Weights(options(tmp_path)), url=url)


def test_a_urls_secrets_are_not_shown(tmp_path: Path, host: ImageHost, caplog: pytest.LogCaptureFixture) -> None:
    """A presigned URL carries its signature in the query; others have a password."""
    caplog.set_level(logging.DEBUG)
    weights = Weights(options(tmp_path))
    base = host.url("/ok/model.pt").replace("http://", f"http://me:{TOKEN}@")
    path = weights.checkpoint(properties(url=f"{base}?X-Amz-Signature={TOKEN}"))
    assert host.requests[0].headers["authorization"].startswith("Basic ")
    messages = [
        refusal(weights, url=f"{base.replace('/ok/', '/status/403/')}?X-Amz-Signature={TOKEN}"),
        refusal(weights, url=f"http://me:{TOKEN}@127.0.0.1:1/x?token={TOKEN}"),
    ]
    own = [record.getMessage() for record in caplog.records if record.name == "ray.serve"]
    assert own
    assert TOKEN not in f"{path}{messages}{own}{caplog.text}"


def test_credentials_do_not_follow_a_redirect(tmp_path: Path, host: ImageHost) -> None:
    with ImageHost({"model.pt": CONTENT}) as other:
        away = host.url(f"/redirect-to?url={other.url('/ok/model.pt')}&code=302")
        Weights(options(tmp_path)).checkpoint(properties(url=away.replace("http://127", f"http://me:{TOKEN}@127", 1)))
        assert "authorization" in host.requests[0].headers
        assert "authorization" not in other.requests[0].headers


# --- One node, several processes ---

DOWNLOAD = """
import sys
from pathlib import Path
from embedding.models.options import LoadOptions
from embedding.models.weights import Weights
options = LoadOptions(model_sources=("url",), cache_dir=Path(sys.argv[1]), allowed_networks="127.0.0.0/8")
print(Weights(options).url(sys.argv[2]))
"""


def process(code: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_download_once(tmp_path: Path, host: ImageHost) -> None:
    url = host.url("/ok/model.pt?delay=1.5")
    both = [process(DOWNLOAD, str(tmp_path / "cache"), url) for _ in range(2)]
    paths = {finished.communicate(timeout=60)[0].strip() for finished in both}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert len(host.requests) == 1


def test_threads_download_once(tmp_path: Path, host: ImageHost) -> None:
    weights = [Weights(options(tmp_path)) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda one: one.url(host.url("/ok/model.pt?delay=0.3")), weights))
    assert len(paths) == 1
    assert len(host.requests) == 1


def test_who_waits_too_long_is_told(tmp_path: Path, host: ImageHost) -> None:
    patient, hasty = Weights(options(tmp_path)), Weights(options(tmp_path, download_timeout_s=0.2))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(patient.url, host.url("/ok/model.pt?delay=1"))
        assert host.wait_for("connections", 1)
        assert "another process" in refusal(hasty, url=host.url("/ok/model.pt?delay=1"))
        assert first.result().read_bytes() == CONTENT


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, host: ImageHost) -> None:
    killed = process(DOWNLOAD, str(tmp_path / "cache"), host.url("/endless"))
    end = time.monotonic() + 30
    while not list((tmp_path / "cache").rglob("endless.part")) and time.monotonic() < end:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left(tmp_path) == ["endless.part"]
    # The next one is not stopped by the lock, does not go on from there, and cleans up.
    message = refusal(Weights(options(tmp_path, max_checkpoint_bytes=2**20)), url=host.url("/endless"))
    assert "max_checkpoint_bytes" in message
    assert left(tmp_path) == []


def test_a_partial_file_is_written_anew(tmp_path: Path) -> None:
    store = Store(tmp_path, 5)

    def die(path: Path) -> None:
        path.write_bytes(b"half")
        path.with_name("kept").write_bytes(b"")
        path.rename(path.with_name("moved"))
        raise unloadable("died")

    with pytest.raises(RequestError, match="died"):
        store.get("key", "model.pt", die)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (folder / "moved").rename(folder / "model.pt.part")
    path = store.get("key", "model.pt", lambda partial: partial.write_bytes(CONTENT) and None)
    assert path.read_bytes() == CONTENT


# --- The hub ---


def test_a_hub_repository(tmp_path: Path, hub: HubHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    weights = Weights(options(tmp_path))
    folder = weights.repository("me/open", allow_patterns=["*.json"])
    assert (folder / "config.json").read_bytes() == b"{}"
    assert (folder / "deep/tokenizer.json").read_bytes() == b"[]"
    assert not (folder / "open_clip_pytorch_model.bin").exists()
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    path = weights.repository_file("me/open", names)
    assert path.read_bytes() == CONTENT
    assert "downloaded open_clip_pytorch_model.bin of me/open" in caplog.text
    assert weights.checkpoint(properties(modelLocation={"hf": {"repo_id": "me/open"}})) == path
    assert hub.transfers("open_clip_pytorch_model.bin") == 1


def test_a_gated_repository(tmp_path: Path, hub: HubHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    weights = Weights(options(tmp_path))
    location = {"modelLocation": {"hf": {"repoId": "me/gated", "filename": "config.json"}, "authRequired": True}}
    assert "no modelAuth for hf" in refusal(weights, None, **location)
    assert "no modelAuth for hf" in refusal(weights, {"s3": {"aws_access_key_id": "x"}}, **location)
    assert hub.requests == []
    messages = [
        refusal(weights, None, modelLocation={"hf": {"repoId": "me/gated", "filename": "config.json"}}),
        refusal(weights, {"hf": {"token": "hf_wrong"}}, **location),
    ]
    assert all("gated" in message and "modelAuth" in message for message in messages)
    path = weights.checkpoint(properties(**location), {"hf": {"token": TOKEN}})
    assert path.read_bytes() == b"{}"
    own = [record.getMessage() for record in caplog.records]
    assert not any(secret in f"{own}{messages}" for secret in (TOKEN, "hf_wrong"))


def test_the_environments_token(tmp_path: Path, hub: HubHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (Weights(options(tmp_path)).repository("me/gated", None, ["*.json"]) / "config.json").is_file()


@pytest.mark.parametrize("name", ["me/unknown", "", "me/open/more", "../x", "me/..", "me open", "a" * 200])
def test_no_such_repository(tmp_path: Path, hub: HubHost, name: str) -> None:
    with pytest.raises(RequestError, match="Unable to load model"):
        Weights(options(tmp_path)).repository(name)


def test_no_such_file(tmp_path: Path, hub: HubHost) -> None:
    weights = Weights(options(tmp_path))
    for name in ("none.pt", "../../../etc/passwd", "/etc/passwd"):
        assert "has no file" in refusal(weights, modelLocation={"hf": {"repoId": "me/open", "filename": name}})
    with pytest.raises(RequestError, match="none of the files"):
        weights.repository("me/open", allow_patterns=["*.zip"])


def test_a_hub_file_above_the_limit(tmp_path: Path, hub: HubHost) -> None:
    with pytest.raises(RequestError, match="max_checkpoint_bytes is 1000"):
        Weights(options(tmp_path, max_checkpoint_bytes=1000)).repository("me/open")


def test_a_hub_file_that_arrives_corrupt(tmp_path: Path, hub: HubHost) -> None:
    hub.corrupt.add("open_clip_pytorch_model.bin")
    weights = Weights(options(tmp_path))
    location = {"modelLocation": {"hf": {"repoId": "me/open"}}}
    assert "'open_clip_pytorch_model.bin' of 'me/open' arrived corrupt" in refusal(weights, **location)
    hub.corrupt.clear()
    assert weights.checkpoint(properties(**location)).read_bytes() == CONTENT


def test_a_hub_that_refuses_connections(tmp_path: Path, hub: HubHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cached is served; for the rest there is a quick refusal."""
    weights = Weights(options(tmp_path))
    folder = weights.repository("me/open", allow_patterns=["*.json"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    started = time.monotonic()
    assert weights.repository("me/open", allow_patterns=["*.json"]) == folder
    assert weights.repository_file("me/open", ("none", "config.json")) == folder / "config.json"
    for missing in (lambda: weights.repository("me/gated"), lambda: weights.repository_file("me/open", ["none"])):
        with pytest.raises(RequestError, match="out of reach"):
            missing()
    assert time.monotonic() - started < 2


def test_a_hub_that_never_answers(tmp_path: Path, hub: HubHost, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(RequestError, match="out of reach"):
            Weights(options(tmp_path, connect_timeout_s=0.5)).repository("me/open")
        assert time.monotonic() - started < 2


# --- S3 ---


def s3_properties(key: str = "deep/model.pt", **more: Any) -> dict[str, Any]:
    return {"modelLocation": {"s3": {"Bucket": "weights", "Key": key}, **more}}


ADMIN = {"s3": {"aws_access_key_id": "AKIAADMIN", "aws_secret_access_key": SECRET}}


def test_s3(tmp_path: Path, s3: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray.serve")
    path = Weights(options(tmp_path)).checkpoint(properties(**s3_properties(authRequired=True)), ADMIN)
    assert path.read_bytes() == CONTENT
    assert path.name == "model.pt"
    assert "downloaded s3://weights/deep/model.pt" in caplog.text


def test_s3_without_credentials_is_not_signed(tmp_path: Path, s3: Any) -> None:
    assert Weights(options(tmp_path)).checkpoint(properties(**s3_properties("public.pt"))).read_bytes() == CONTENT


def test_s3_that_requires_credentials(tmp_path: Path, s3: Any) -> None:
    for auth in (None, {"hf": {"token": TOKEN}}):
        assert "no modelAuth for s3" in refusal(Weights(options(tmp_path)), auth, **s3_properties(authRequired=True))


def test_s3_failures(tmp_path: Path, s3: Any) -> None:
    weights = Weights(options(tmp_path))
    assert "404 (NoSuchKey)" in refusal(weights, ADMIN, **s3_properties("none.pt"))
    for bucket, reason in (("nobody-has-it", "404 (NoSuchBucket)"), ("arn:aws:s3:::x", "not a bucket's name")):
        location = {"modelLocation": {"s3": {"Bucket": bucket, "Key": "x"}}}
        assert reason in refusal(weights, ADMIN, **location)
    limited = Weights(options(tmp_path, max_checkpoint_bytes=1000))
    assert "max_checkpoint_bytes is 1000" in refusal(limited, ADMIN, **s3_properties())
    assert left(tmp_path) == []


def test_s3_out_of_reach(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "EndpointConnectionError" in refusal(Weights(options(tmp_path)), ADMIN, **s3_properties())


def test_wrong_s3_credentials_never_reach_a_log(
    tmp_path: Path, s3: Any, s3_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ray.serve")
    import requests

    requests.post(f"{s3_server}/moto-api/reset-auth", data=b"0", timeout=5)
    try:
        message = refusal(Weights(options(tmp_path)), ADMIN, **s3_properties())
    finally:
        requests.post(f"{s3_server}/moto-api/reset-auth", data=b"inf", timeout=5)
    assert "403 (InvalidAccessKeyId)" in message
    assert SECRET not in f"{message}{caplog.text}"
    assert "AKIAADMIN" not in f"{message}{caplog.text}"


# --- Archives and groups of files ---


def _tar(files: dict[str, bytes], mode: Any = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def hf_properties(**location: Any) -> HfProperties:
    return HfProperties.model_validate({"type": "hf", "dimensions": 8, **location})


FILES = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
ARCHIVES = {
    "model.zip": _zip(FILES),
    "model.tar": _tar(FILES, "w"),
    "model.tar.gz": _tar(FILES),
    "model.tar.xz": _tar(FILES, "w:xz"),
    "nested.tar.gz": _tar({f"model/{name}": content for name, content in FILES.items()}),
    "nameless": _zip(FILES),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(tmp_path: Path, host: ImageHost, name: str) -> None:
    host.files[name] = ARCHIVES[name]
    weights = Weights(options(tmp_path))
    folder = weights.archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert weights.archive(hf_properties(url=host.url(f"/ok/{name}"))) == folder
    assert len(host.requests) == 1


def _with_link(target: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("config.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        tar.addfile(entry)
    return buffer.getvalue()


HOSTILE = {
    "up.tar": _tar({"../../escaped": b"x"}, "w"),
    "absolute-link.tar": _with_link("/etc/passwd"),
    "link.tar": _with_link("../../../../../../etc/passwd"),
    "up.zip": _zip({"../../escaped": b"x"}),
    "absolute.zip": _zip({"/escaped": b"x"}),
    "bomb.tar.gz": _tar({"zeros": bytes(50_000_000)}),
    "many.zip": _zip({str(number): b"" for number in range(10_001)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(tmp_path: Path, host: ImageHost, name: str) -> None:
    host.files[name] = HOSTILE[name]
    weights = Weights(options(tmp_path, max_checkpoint_bytes=10_000_000))
    with pytest.raises(RequestError, match="Unable to load model: the archive"):
        weights.archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert not list(tmp_path.rglob("escaped"))
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("name", ["model.zip", "model.tar.gz", "model.tar.xz", "junk"])
def test_a_broken_archive_is_deleted_and_named(tmp_path: Path, host: ImageHost, name: str) -> None:
    content = ARCHIVES.get(name, CONTENT)
    host.files[name] = content[: len(content) // 2]
    with pytest.raises(RequestError, match=rf"the archive '{name}' is corrupt .*; it was deleted"):
        Weights(options(tmp_path)).archive(hf_properties(url=host.url(f"/ok/{name}")))
    assert left(tmp_path) == []


def test_sources_that_belong_together(tmp_path: Path, host: ImageHost, s3: Any) -> None:
    """The files of an ONNX export: a graph finds its data under its base name, beside itself."""
    for name in ("model.onnx", "model.onnx.data"):
        host.files[name] = name.encode()
        s3.put_object(Bucket="weights", Key=f"clip/{name}", Body=name.encode())
    weights = Weights(options(tmp_path))
    groups = [
        [host.url("/ok/model.onnx"), host.url("/ok/model.onnx.data?x=1")],
        ["s3://weights/clip/model.onnx", host.url("/ok/model.onnx.data")],
        ["s3://weights/clip/model.onnx", "s3://weights/clip/model.onnx.data"],
    ]
    folders = [weights.folder(group, ADMIN) for group in groups]
    assert len(set(folders)) == 3
    for folder in folders:
        for name in ("model.onnx", "model.onnx.data"):
            assert (folder / name).read_bytes() == name.encode()
            assert not (folder / name).is_symlink()


def test_local_files_that_belong_together(tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "other").mkdir(parents=True)
    for name in ("model.onnx", "model.onnx.data", "other/model.onnx.data"):
        (root / name).write_bytes(b"")
    weights = Weights(options(tmp_path))
    assert weights.folder([f"{root}/model.onnx", f"{root}/model.onnx.data"]) == root
    assert weights.folder([f"{root}/other"]) == root / "other"
    for group in (
        [f"{root}/model.onnx", f"{root}/other/model.onnx.data"],
        [f"{root}/model.onnx", "http://127.0.0.1:1/model.onnx.data"],
        ["/etc/hostname"],
        ["s3://no/../key", f"{root}/model.onnx"],
    ):
        with pytest.raises(RequestError, match="Unable to load model"):
            weights.folder(group)


def _localpath_of_demo() -> dict[str, Any]:
    entry = lookup(DEMO_MODEL)
    assert entry is not None
    return {"localpath": entry["localpath"]}
