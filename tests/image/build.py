"""Builds the image without any registry of images: Debian's mmdebstrap makes the base, buildah does the rest."""

import configparser
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.places import ROOT

PROGRAMS = ("mmdebstrap", "buildah", "podman", "crun", "nsenter")
BASE_PACKAGES = "python3,python3-venv,ca-certificates,wget"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
FREE_BYTES = 25 * 2**30
"""Of the disk: the packages lie in the layer in which they are installed, and in that of the image."""
GENTLY = ("nice", "-n", "10", "ionice", "-c", "3")


@dataclass(frozen=True)
class Image:
    """An image in the store of `Builder`.

    Args:
        name: of the image.
        config: its members Env, Entrypoint, Cmd, User, WorkingDir, Volumes, Healthcheck and Labels, as Docker names
            them.
        root: folder with its files.
        layers: what made each layer, and its size in bytes, the base first.
    """

    name: str
    config: dict[str, Any]
    root: Path
    layers: list[tuple[str, int]]


def problem(folder: Path) -> str | None:
    """The reason why no image can be built in a folder of this machine, or None."""
    if os.geteuid() != 0:
        return "an image is built and run as root"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"this machine has no {', '.join(missing)}"
    if (free := shutil.disk_usage(folder).free) < FREE_BYTES:
        return f"{free / 2**30:.0f} GiB are free in {folder}, and {FREE_BYTES / 2**30:.0f} are needed"
    return None


class Builder:
    """Builds in a store of its own, below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = (
            "--root",
            str(folder / "storage"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            "overlay",
        )

    def base(self) -> str:
        """A minimal Debian with Python, unless there is one from an earlier run; returns its name."""
        if "localhost/base" in self._buildah("images", "--format", "{{.Name}}").splitlines():
            return "localhost/base"
        archive = self._folder / "base.tar"
        release = ("--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm")
        _run(*GENTLY, "mmdebstrap", "--quiet", *release, str(archive))
        (self._folder / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        self._buildah("build", "--isolation", "chroot", "--tag", "base", str(self._folder))
        archive.unlink()
        return "localhost/base"

    def image(self, base: str, **arguments: str) -> Image:
        """Builds the Dockerfile of this project with pip's settings of this machine."""
        settings, folders = _settings_of_pip()
        secret = self._folder / "pip.conf"
        with secret.open("w") as file:
            settings.write(file)
        options = [f"--secret=id=pip,src={secret}", f"--build-arg=BASE={base}"]
        if AUTHORITIES.exists():
            options.append(f"--secret=id=authorities,src={AUTHORITIES}")
        options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--volume={folder}:{folder}:ro" for folder in folders]
        name = "marqo-inference"
        # Health checks are part of Docker's format alone.
        how = ("--isolation", "chroot", "--format", "docker", "--layers", "--quiet")
        self._buildah("build", *how, *options, "--tag", name, str(ROOT))
        container = self._buildah("from", name)
        root = Path(self._buildah("mount", container))
        return Image(name, self._config(name), root, self._layers(name))

    def close(self, images: bool = True) -> None:
        """Deletes the containers, and with `images` everything that was built."""
        self._buildah("umount", "--all")
        self._buildah("rm", "--all")
        if images:
            self._buildah("rmi", "--all", "--force")

    def _config(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._buildah("inspect", "--type", "image", name))["Docker"]["config"]
        return found

    def _layers(self, name: str) -> list[tuple[str, int]]:
        history = json.loads(_run("podman", *self._store, "history", "--format", "json", name))
        return [(each["CreatedBy"], each["size"]) for each in reversed(history) if each["size"] > 2**12]

    def _buildah(self, *words: str) -> str:
        return _run(*GENTLY, "buildah", *self._store, *words)


def _settings_of_pip() -> tuple[configparser.RawConfigParser, list[Path]]:
    """Those of this machine, for a build, and the folders that they name."""
    listed = _run(sys.executable, "-m", "pip", "config", "list").splitlines()
    given = [line.partition("=") for line in listed]
    # As pip does it: variables count more than files, of which one for `install` counts more than one for all commands.
    order = ("global.", "install.", ":env:.")
    found = {}
    for kind in order:
        for key, _, value in given:
            if key.startswith(kind):
                found[key.removeprefix(kind)] = value.strip("'").replace("\\n", "\n    ")
    found.pop("cert", None)  # a secret of its own
    settings = configparser.RawConfigParser()
    settings["global"] = found
    words = [word for value in found.values() for word in value.split()]
    # The pages of an index link to files beside its own folder.
    places = [Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")]
    places += [Path(word) for word in words if word.startswith("/")]
    return settings, [place for place in places if place.is_dir()]


def _run(*command: str) -> str:
    """The command's output; what it says of an error is part of the exception."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"{_named(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def _named(command: Sequence[str]) -> str:
    return " ".join(command)[:200]
