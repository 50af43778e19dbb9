"""Downloads from the Hugging Face hub by its own client, with that client's cache, locks and tokens."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub import errors as hub_errors

from embedding.models.files.accepted_credentials import Access
from embedding.models.files.disk import Disk
from embedding.models.files.failure import is_full, unloadable
from embedding.models.files.options import LoadOptions
from embedding.models.files.pace import Pace, TooSlow
from embedding.models.files.progress import HubProgress

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_LONGEST_NAME = 96  # the hub's own limit
_CHUNK_BYTES = 2**22
# The client writes 10 MiB at a time: a download that has not written anything for this long has been abandoned.
_ABANDONED_S = 3600.0


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    sha256: str
    """"" if unknown: the hub tells it for large files only."""


class Hub:
    """Downloads from the hub that HF_ENDPOINT names. Blocks.

    Args:
        options: limits.
        cache_dir: cache folder, in the layout of the hub's client.
        disk: the disk with that folder.
        access: remembers which tokens the hub has accepted.
    """

    def __init__(self, options: LoadOptions, cache_dir: Path, disk: Disk, access: Access) -> None:
        self._options = options
        self._cache_dir = cache_dir
        self._disk = disk
        self._access = access

    def first(self, repo_id: str, names: Sequence[str], token: str | None) -> Path:
        """The first of several file names that the repository has.

        Raises:
            RequestError: REFUSED, with the reason; never with the token.
        """
        with self._disk.using(self._repository(repo_id)):
            return self._first(repo_id, names, token)

    def _first(self, repo_id: str, names: Sequence[str], token: str | None) -> Path:
        files = self._files(repo_id, token)
        if files is None:
            self._check_confirmed(repo_id, token)
            cached = [path for name in names if (path := self._cached(repo_id, name))]
            if not cached:
                raise _unreachable(repo_id)
            return cached[0]
        for name in names:
            for file in files:
                if file.name == name:
                    return self._download(repo_id, file, token)
        raise unloadable(f"the hub's repository '{repo_id}' has no file {' or '.join(names)}")

    def folder(self, repo_id: str, patterns: Sequence[str] | None, token: str | None) -> Path:
        """The folder of a repository's files, those that match one of `patterns`; None is all.

        Raises:
            RequestError: REFUSED, with the reason; never with the token.
        """
        with self._disk.using(self._repository(repo_id)):
            return self._folder(repo_id, patterns, token)

    def _folder(self, repo_id: str, patterns: Sequence[str] | None, token: str | None) -> Path:
        files = self._files(repo_id, token)
        if files is None:
            self._check_confirmed(repo_id, token)
            return self._cached_folder(repo_id)
        wanted = [file for file in files if patterns is None or any(fnmatchcase(file.name, p) for p in patterns)]
        if not wanted:
            raise unloadable(f"the hub's repository '{repo_id}' has none of the files {', '.join(patterns or ())}")
        for file in wanted:
            path = self._download(repo_id, file, token)
        return path.parents[file.name.count("/")]

    def _files(self, repo_id: str, token: str | None) -> list[_File] | None:
        """The repository's files; None if the hub cannot be reached. A single request without retries, since those of
        the client would delay the caller for long."""
        api = HfApi(endpoint=_endpoint(), token=token)
        try:
            info = api.model_info(repo_id, files_metadata=True, timeout=self._options.connect_timeout_s)
        except hub_errors.HfHubHTTPError as error:
            if error.response is not None and error.response.status_code >= 500:
                return None
            raise _failure(repo_id, error) from None
        except Exception:
            # No answer. The type of the error depends on the client's version.
            return None
        return [
            _File(sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else "")
            for sibling in info.siblings or ()
        ]

    def _download(self, repo_id: str, file: _File, token: str | None) -> Path:
        cached = self._cached(repo_id, file.name)
        limit = self._options.max_checkpoint_bytes
        if limit and file.size > limit:
            raise unloadable(f"'{file.name}' of '{repo_id}' has {file.size} bytes, and max_checkpoint_bytes is {limit}")
        if not self._options.share_private_models:
            self._check_access(repo_id, file.name, token)
        if cached is None:
            self._delete_abandoned(self._repository(repo_id) / "blobs")
            self._disk.check_free_space(file.size)
        try:
            with _watch_pace(Pace(self._options)):
                path = Path(
                    hf_hub_download(  # type: ignore[call-overload]
                        repo_id,
                        file.name,
                        token=token,
                        endpoint=_endpoint(),
                        cache_dir=self._cache_dir,
                        etag_timeout=self._options.connect_timeout_s,
                        # The client only calls it, so it need not be a class.
                        tqdm_class=partial(HubProgress, f"{file.name} of {repo_id}"),
                    )
                )
        except OSError as error:
            if is_full(error):
                raise unloadable(f"the disk of cache_dir became full while '{file.name}' was written") from None
            raise _failure(repo_id, error) from None
        except Exception as error:
            raise _failure(repo_id, error) from None
        if path != cached:
            _check(path, file, repo_id)
        return path

    def _check_access(self, repo_id: str, name: str, token: str | None) -> None:
        """Asks the hub whether this token may have a file, since its client would return cached files for any token."""
        url = hf_hub_url(repo_id, name, endpoint=_endpoint())
        try:
            get_hf_file_metadata(url, token=token, endpoint=_endpoint(), timeout=self._options.connect_timeout_s)
        except Exception as error:
            status = error.response.status_code if isinstance(error, hub_errors.HfHubHTTPError) else 500
            if status >= 500:
                self._check_confirmed(repo_id, token)
                return
            self._access.deny(repo_id, token)
            raise _failure(repo_id, error) from None
        self._access.confirm(repo_id, token)

    def _check_confirmed(self, repo_id: str, token: str | None) -> None:
        """While the hub cannot be reached, only tokens that it has accepted for a repository may use cached files."""
        if not self._options.share_private_models and not self._access.is_confirmed(repo_id, token):
            raise unloadable(
                f"the hub is out of reach, and cannot say whether the request's credentials open '{repo_id}' "
                "(share_private_models is false)"
            )

    @staticmethod
    def _delete_abandoned(blobs: Path) -> None:
        """Deletes remains of killed downloads, which the client neither resumes nor deletes."""
        oldest = time.time() - _ABANDONED_S
        for part in blobs.glob("*.incomplete"):
            try:
                if part.stat().st_mtime < oldest:
                    part.unlink()
            except OSError:  # completed or deleted concurrently, or the folder is read-only
                continue

    def _repository(self, repo_id: str) -> Path:
        """The repository's folder, in the layout of the hub's client."""
        if not _REPOSITORY.fullmatch(repo_id) or ".." in repo_id or len(repo_id) > _LONGEST_NAME:
            raise unloadable(f"'{repo_id[:100]}' is not the name of a hub repository, OWNER/NAME")
        return self._cache_dir / f"models--{repo_id.replace('/', '--')}"

    def _cached(self, repo_id: str, name: str) -> Path | None:
        try:
            path = hf_hub_download(repo_id, name, cache_dir=self._cache_dir, local_files_only=True)
        except (hub_errors.EntryNotFoundError, OSError, ValueError):
            return None
        return Path(path)

    def _cached_folder(self, repo_id: str) -> Path:
        root = self._repository(repo_id)
        try:
            folder = root / "snapshots" / (root / "refs" / "main").read_text().strip()
        except OSError:
            raise _unreachable(repo_id) from None
        if not folder.is_dir():
            raise _unreachable(repo_id)
        return folder


_pace: ContextVar[Pace | None] = ContextVar("pace", default=None)


@contextmanager
def _watch_pace(pace: Pace) -> Iterator[None]:
    """Applies a minimum rate to what the hub's client receives in this thread within the context. It hooks into the
    client's HTTP responses, since the progress bar is updated only every 10 MiB. Downloads by Xet, which has no such
    hook, are not limited.
    """
    hooks = get_session().event_hooks
    if _track_pace not in hooks["response"]:
        get_session().event_hooks = {**hooks, "response": [*hooks["response"], _track_pace]}
    token = _pace.set(pace)
    try:
        yield
    finally:
        _pace.reset(token)


def _track_pace(response: Any) -> None:
    pace = _pace.get()
    if pace is None:
        return
    unwatched = response.iter_raw

    def iter_raw(chunk_size: int | None = None) -> Iterator[bytes]:
        for chunk in unwatched(chunk_size):
            pace.advance(len(chunk))
            yield chunk

    response.iter_raw = iter_raw


def forget(path: Path) -> None:
    """Deletes a cached file, so that it will be downloaded again."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def _endpoint() -> str | None:
    # Read at each use, while the client reads it only once, when it is imported.
    return os.environ.get("HF_ENDPOINT") or None


def _check(path: Path, file: _File, repo_id: str) -> None:
    digest = hashlib.sha256()
    if file.sha256:
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
    if (file.size and path.stat().st_size != file.size) or (file.sha256 and digest.hexdigest() != file.sha256):
        forget(path)
        raise unloadable(f"'{file.name}' of '{repo_id}' arrived corrupt; it was deleted")


def _unreachable(repo_id: str) -> Exception:
    return unloadable(f"the hub is out of reach, and '{repo_id}' is not in this machine's cache")


def _failure(repo_id: str, error: Exception) -> Exception:
    """The error for the hub's answer. The client's own messages give advice that does not apply to a server."""
    match error:
        case hub_errors.GatedRepoError():
            reason = "it is gated; give a token that has access as modelAuth"
        case hub_errors.RepositoryNotFoundError():
            reason = "it does not exist, or it is private and needs a token with access as modelAuth"
        case hub_errors.LocalEntryNotFoundError():
            return _unreachable(repo_id)
        case TooSlow():
            reason = str(error)
        case hub_errors.EntryNotFoundError():
            reason = "it has no such file"
        case hub_errors.HfHubHTTPError():
            status = error.response.status_code if error.response is not None else "nothing"
            reason = f"the hub answered {status}" + ("; is the token right?" if status in (401, 403) else "")
        case _:
            reason = f"downloading it failed ({type(error).__name__})"
    return unloadable(f"the hub's repository '{repo_id}': {reason}")
