"""Gets a model's files from the source that its properties name to this machine's disk, if the operator allows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from embedding.errors import RequestError
from embedding.models.files import hub, s3
from embedding.models.files.accepted_credentials import Access
from embedding.models.files.archive import BrokenArchive, content_root, unpack
from embedding.models.files.checkpoint import BrokenCheckpoint, Kind, checkpoint_kind
from embedding.models.files.disk import Disk
from embedding.models.files.download import RemoteFile, download
from embedding.models.files.failure import invalid, unloadable
from embedding.models.files.hub import Hub
from embedding.models.files.load_session import once, session
from embedding.models.files.load_time import downloading
from embedding.models.files.options import LoadOptions, Source
from embedding.models.files.store import Store
from embedding.registry import lookup, names
from embedding.shown import shown

Auth = Mapping[str, Any]
"""A request's `modelAuth` with its secrets: {"hf": {"token"}} or {"s3": {"aws_access_key_id", ...}}."""

OPENCLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""A repository's open_clip weights, in open_clip's own order of preference."""

_MAX_SHARDS = 500


class Located(Protocol):
    """Properties that may say where the weights are; at most one of the three is set."""

    @property
    def localpath(self) -> str | None: ...
    @property
    def url(self) -> str | None: ...
    @property
    def location(self) -> dict[str, Any] | None: ...


class Weights:
    """The files of models. Blocks while it downloads: call it in loader threads. All processes of a node share a cache.

    Credentials are used for downloads only: cached files serve every request, unless the option `share_private_models`
    is false. Then the source is asked each time whether the request's credentials give access.

    Args:
        options: sources, limits and the folder.
    """

    def __init__(self, options: LoadOptions) -> None:
        self._options = options
        self._disk = Disk(options.cache_dir, options.max_cache_bytes)
        self._store = Store(options.cache_dir / "files", options.download_timeout_s, self._disk)
        self._hub_cache = _hub_cache(options)
        self._access = Access()
        self._hub = Hub(options, self._hub_cache, self._disk, self._access)
        self._roots = tuple(root.expanduser().resolve() for root in options.path_roots)

    def session(self) -> AbstractContextManager[None]:
        """Files used within the context, or in threads that run in a copy of it, stay on the disk until it ends, even
        beyond `max_cache_bytes`, and are requested from their source only once."""
        return session()

    def checkpoint(self, properties: Located, auth: Auth | None = None) -> Path:
        """The file that `localpath`, `url` or `modelLocation` names.

        Raises:
            RequestError: REFUSED: not allowed (it names the setting), not found, or the download failed.
        """
        if properties.localpath is not None:
            return self._local_path(properties.localpath)
        if properties.url is not None:
            return self.url(properties.url)
        location = properties.location or {}
        _check_auth(location, auth)
        if "s3" in location:
            return self._s3(location["s3"]["Bucket"], location["s3"]["Key"], auth)
        if "hf" in location:
            hf_location = location["hf"]
            wanted = (hf_location["filename"],) if hf_location.get("filename") else OPENCLIP_FILES
            return self.repository_file(hf_location["repoId"], wanted, hf_token(auth))
        raise invalid("give one of `url`, `localpath` and `modelLocation`")

    def archive(self, properties: Located, auth: Auth | None = None) -> Path:
        """The folder that the properties name: a local folder, a hub repository, or an unpacked zip or tar file.

        Raises:
            RequestError: REFUSED, as `checkpoint`, and for an archive that is broken or has unsafe names.
        """
        if properties.localpath is not None and Path(properties.localpath).is_dir():
            return self._local_path(properties.localpath, folder=True)
        hf_location = (properties.location or {}).get("hf")
        if hf_location and not hf_location.get("filename"):
            _check_auth(properties.location or {}, auth)
            return self.repository(hf_location["repoId"], hf_token(auth))
        return self._unpacked(self.checkpoint(properties, auth))

    def repository(
        self, repo_id: str, token: str | None = None, allow_patterns: Sequence[str] | None = None, name: str = ""
    ) -> Path:
        """The folder of a hub repository's files, those that match `allow_patterns` (None is all).

        The folder may hold more, from other downloads.

        Args:
            repo_id: `owner/name`.
            token: the request's, or None for the environment's (HF_TOKEN).
            allow_patterns: as in `fnmatch`, so `*` also matches `/`.
            name: the properties' `name`, by which the registry knows the model; "" is `repo_id`.

        Raises:
            RequestError: REFUSED: not allowed (it names the setting), unknown, gated, or the hub cannot be reached.
        """
        self.check_hub(name or repo_id)

        def get() -> Path:
            with downloading():
                return self._hub.folder(repo_id, allow_patterns, token)

        return once(("folder", repo_id, tuple(allow_patterns or ()), token), get)

    def repository_file(self, repo_id: str, filenames: Sequence[str], token: str | None = None, name: str = "") -> Path:
        """The first of several file names that a hub repository has. See `repository`."""
        self.check_hub(name or repo_id)

        def get() -> Path:
            with downloading():
                return self._hub.first(repo_id, filenames, token)

        return once(("file", repo_id, tuple(filenames), token), get)

    def folder(self, sources: Sequence[str], auth: Auth | None = None) -> Path:
        """A folder with the files of several sources (https://…, s3://BUCKET/KEY or a path) under their base names.

        They are files, not links: ONNX Runtime follows no links to a graph's external data.

        Raises:
            RequestError: REFUSED, as `checkpoint`.
        """
        if not any("://" in source for source in sources):
            if len(sources) == 1 and Path(sources[0]).is_dir():
                return self._local_path(sources[0], folder=True)
            paths = [self._local_path(source) for source in sources]
            if len({path.parent for path in paths}) == 1:
                return paths[0].parent
            raise unloadable("files that belong together must lie in one folder")
        group = "\n".join(sources)
        for source in sources:
            path = self._source_file(group, source, auth)
        return path.parent

    def unusable(self, paths: Sequence[Path], reason: str) -> RequestError:
        """The error for files that turned out to be damaged. Downloaded files are deleted, so that the next request
        downloads them again; an operator's own files are not.
        """
        deleted = [self._delete_download(path) for path in paths]
        end = "; it was deleted, and will be downloaded anew" if any(deleted) else ""
        return unloadable(f"{reason}{end}")

    def check(self, path: Path) -> Kind:
        """Checks a checkpoint and returns its kind.

        Raises:
            RequestError: REFUSED: it is damaged (see `unusable`), or no checkpoint.
        """
        try:
            return checkpoint_kind(path)
        except BrokenCheckpoint as error:
            raise self.unusable([path], f"the checkpoint '{path.name}' is corrupt: {error}") from None

    def _delete_download(self, path: Path) -> bool:
        if path.is_relative_to(self._hub_cache):
            hub.forget(path)
            return True
        return self._store.forget(path)

    def asset(self, file: str, name: str) -> Path:
        """A file of this package, which belongs to the registry's model `name`.

        Raises:
            RequestError: REFUSED, naming the setting, if the operator does not allow the registry.
        """
        self._check_source("registry", f"'{name}'")
        return _assets() / file

    def check_hub(self, name: str) -> None:
        """Refuses a hub model that the operator does not allow.

        Raises:
            RequestError: REFUSED, naming the setting.
        """
        if not ("registry" in self._options.model_sources and name in registered()):
            self._check_source("hub", f"'{name}'")

    def url(self, url: str, sha256: str = "", name: str = "") -> Path:
        """Downloads the file of an http(s) URL.

        Args:
            url: of the file.
            sha256: the first digits of the hash that it must have; "" is any.
            name: as in `repository`, if the URL is that of a registered model or pretrained tag; "" if it is the
                request's own.
        """
        if name:
            self.check_hub(name)
        else:
            self._check_source("url", "its url")
        source = RemoteFile.parse(url, sha256)
        return self._stored(url, source.name, self._download_of(source))

    def _s3(self, bucket: str, key: str, auth: Auth | None, group: str = "") -> Path:
        self._check_source("s3", "modelLocation.s3")
        options, credentials = self._options, (auth or {}).get("s3")

        def write(path: Path) -> None:
            s3.download_object(bucket, key, credentials, path, options, self._disk.check_free_space)

        def check() -> None:
            if not options.share_private_models:
                s3.check_access(bucket, key, credentials, options)

        identity = group or f"{s3.endpoint()} {s3.s3_label(bucket, key)}"
        name = PurePosixPath(key).name or "checkpoint"
        return self._stored(identity, name, write, check)

    def _source_file(self, group: str, source: str, auth: Auth | None) -> Path:
        """Downloads one of several sources to a common folder, whose key is `group`."""
        if source.startswith("s3://"):
            bucket, _, key = source.removeprefix("s3://").partition("/")
            return self._s3(bucket, key, auth, f"{s3.endpoint()} {group}")
        if "://" not in source:
            raise unloadable("paths and URLs cannot be mixed in one model")
        self._check_source("url", "a source of it")
        parsed = RemoteFile.parse(source)
        return self._stored(f"{s3.endpoint()} {group}", parsed.name, self._download_of(parsed))

    def _download_of(self, source: RemoteFile) -> Callable[[Path], None]:
        return lambda path: download(source, path, self._options, self._disk.check_free_space)

    def _stored(
        self, key: str, name: str, write: Callable[[Path], None], check: Callable[[], None] = lambda: None
    ) -> Path:
        def get() -> Path:
            with downloading():
                check()
                return self._store.get(key, name, write)

        return once((key, name), get)

    def _local_path(self, given: str, folder: bool = False) -> Path:
        """Resolves a path of this machine. Errors do not reveal whether a path outside the allowed roots exists."""
        try:
            path = Path(given).resolve()
            exists = path.is_dir() if folder else path.is_file()
        except (OSError, ValueError):  # a zero byte, a name that is too long
            raise unloadable("its localpath is not a path") from None
        if not any(path.is_relative_to(root) for root in self._allowed_roots()):
            self._check_source("path", "its localpath")
            raise unloadable("its localpath is not under one of this server's path_roots")
        if not exists:
            raise unloadable(f"localpath '{shown(given)}' is not a {'folder' if folder else 'file'} here")
        return path

    def _allowed_roots(self) -> tuple[Path, ...]:
        registry = "registry" in self._options.model_sources
        paths = "path" in self._options.model_sources
        return (_assets(),) * registry + self._roots * paths

    def _unpacked(self, archive: Path) -> Path:
        status = archive.stat()
        limit = self._options.max_checkpoint_bytes
        key = f"unpacked {archive} {status.st_size} {status.st_mtime_ns}"

        def write(folder: Path) -> None:
            unpack(archive, folder, limit, self._disk.check_free_space)
            files = [*folder.rglob("pytorch_model*.bin"), *folder.rglob("model*.safetensors")]
            if len(files) > _MAX_SHARDS:
                raise unloadable(f"the archive has more than {_MAX_SHARDS} files of weights")
            for path in files:
                checkpoint_kind(path)

        try:
            return content_root(self._store.get(key, "content", write))
        except (BrokenArchive, BrokenCheckpoint) as error:
            raise self.unusable([archive], f"the archive '{archive.name}' is corrupt ({error})") from None

    def _check_source(self, source: Source, what: str) -> None:
        if source not in self._options.model_sources:
            allowed = ", ".join(self._options.model_sources) or "nothing"
            raise unloadable(
                f"{what} needs the source '{source}', and this server's setting model_sources allows {allowed} only"
            )


def hf_token(auth: Auth | None) -> str | None:
    """The hub token of a request's `modelAuth`."""
    token: str | None = ((auth or {}).get("hf") or {}).get("token")
    return token


def _check_auth(location: Mapping[str, Any], auth: Auth | None) -> None:
    kind = "s3" if "s3" in location else "hf"
    if location.get("authRequired") and not (auth or {}).get(kind):
        raise invalid(f"modelLocation says authRequired, and the request has no modelAuth for {kind}")


def _hub_cache(options: LoadOptions) -> Path:
    """The hub's cache. The variables of its own client apply, so that an existing cache is used."""
    if cache_dir := os.environ.get("HF_HUB_CACHE"):
        return Path(cache_dir).expanduser().absolute()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser().absolute() / "hub"
    return options.cache_dir.expanduser().absolute() / "hub"


@cache
def _assets() -> Path:
    return Path(str(resources.files("embedding.assets"))).resolve()


@cache
def registered() -> frozenset[str]:
    """The `name` properties of the registry's models."""
    entries = (lookup(name) or {} for name in names())
    return frozenset(str(entry["name"]) for entry in entries if "name" in entry)
