"""Checks the machine before the start, with clear messages: Ray would fail with pages of text, or silently."""

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

MIN_FILES = 1024
"""Least limit of open files: those of Ray, sockets of replicas, and about two hundred connections of HAProxy."""
MANY_FILES = 2**20
"""The limit is not raised above this: some programs close every possible file descriptor when they start."""
MIN_SHARED_BYTES = 75 * 2**20
"""The least size of Ray's object store. With less shared memory Ray would use the disk, which is slow, without a
message."""
SHARED = Path("/dev/shm")
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def raise_limits() -> None:
    """Raises this process's limits of open files and processes, which its children inherit, as far as it is allowed."""
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if most == resource.RLIM_INFINITY else min(most, MANY_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def problem() -> str | None:
    """The reason why a server cannot run on this machine, as one sentence, or None."""
    return next(_problems(), None)


def _problems() -> Iterator[str]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files != resource.RLIM_INFINITY and files < MIN_FILES:
        yield (
            f"only {files} open files are allowed, and at least {MIN_FILES} are needed: raise the hard limit "
            "(ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of a container)"
        )
    yield from _shared_memory()
    for what, folder in _folders().items():
        if not _can_write(folder):
            yield f"{what} {folder} cannot be written to: make it writable, or name another one"
    yield from _token()


def _shared_memory() -> Iterator[str]:
    remedy = "mount a tmpfs there (--shm-size= of a container)"
    try:
        found = os.statvfs(SHARED)
    except OSError:
        yield f"there is no {SHARED}, which pictures pass through between processes: {remedy}"
        return
    size = found.f_blocks * found.f_frsize
    if size < MIN_SHARED_BYTES:
        yield (
            f"{SHARED}, which pictures pass through between processes, has {size / 2**20:.0f} MiB, and at least "
            f"{MIN_SHARED_BYTES / 2**20:.0f} are needed: make it larger (--shm-size= of a container)"
        )
    elif not _can_write(SHARED):
        yield f"{SHARED}, which pictures pass through between processes, cannot be written to: {remedy}"


def _folders() -> dict[str, Path]:
    """Folders that must be writable, by their names in messages."""
    temporary = os.environ.get("TMPDIR") or "/tmp"
    haproxy = os.environ.get("RAY_SERVE_HAPROXY_CONFIG_FILE_LOC") or "/tmp/haproxy-serve/haproxy.cfg"
    return {
        "the folder for temporary files (TMPDIR)": Path(temporary),
        "Ray's folder for temporary files (RAY_TMPDIR)": Path(os.environ.get("RAY_TMPDIR") or temporary),
        "HAProxy's folder (RAY_SERVE_HAPROXY_CONFIG_FILE_LOC)": Path(haproxy).parent,
    }


def _token() -> Iterator[str]:
    """Ray keeps the token that authenticates its processes in the home folder, unless a variable says otherwise."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or any(os.environ.get(name) for name in TOKEN_VARIABLES):
        return
    remedy = "make it writable, or set RAY_AUTH_TOKEN"
    try:
        token = Path.home() / ".ray" / "auth_token"
    except RuntimeError:
        yield f"there is no home folder (HOME), where Ray keeps the token of its processes: {remedy}"
        return
    if not os.access(token, os.R_OK) and not _can_write(token.parent):
        yield f"the home folder (HOME) {Path.home()} is read-only, and Ray keeps its processes' token there: {remedy}"


def _can_write(folder: Path) -> bool:
    """Whether files can be created in the folder, or, if it does not exist, in its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
