"""Where the files of a model come from, according to its properties."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from blake3 import blake3

from embedding.fetch.guard import is_literal
from embedding.models.files.download import RemoteFile
from embedding.models.files.options import LoadOptions
from embedding.models.files.transfers import Origin
from embedding.models.files.weights import registered
from embedding.models.onnx.model import wants_onnx
from embedding.models.properties import HfProperties, OpenClipProperties, RandomProperties, Tower, parse_properties
from embedding.models.spec import ModelSpec

_HUB_PREFIX = "hf-hub:"
_TAG_PREFIX = "open_clip/"


def needs_files(spec: ModelSpec) -> bool:
    """Whether the model has files to download or read. True also for types that are not served."""
    return spec.properties.get("type") != "random"


def origin_of(spec: ModelSpec, options: LoadOptions) -> Origin:
    """The source of the model's files; if it has several, the least trusted one.

    Raises:
        RequestError: REFUSED: the properties are not valid.
    """
    properties = parse_properties(spec.properties)
    if isinstance(properties, RandomProperties):
        return _origin("path", "", "")
    if wants_onnx(spec, properties, options):
        return _of_graphs(properties)
    if properties.url is not None:
        return _of_sources([properties.url])
    if properties.localpath is not None:
        return _origin("path", "", properties.localpath)
    location = properties.location or {}
    if "s3" in location:
        return _of_sources([f"s3://{location['s3']['Bucket']}/{location['s3']['Key']}"])
    name = properties.name or ""
    if "hf" not in location and _is_registered(name, options):
        return _origin("registry", "", name)
    repository = location["hf"]["repoId"] if "hf" in location else name.removeprefix(_HUB_PREFIX)
    return _origin("hub", repository.partition("/")[0], repository)


def _is_registered(name: str, options: LoadOptions) -> bool:
    # Pretrained tags come from open_clip's own table, so a request cannot name a server by one.
    return name.startswith(_TAG_PREFIX) or ("registry" in options.model_sources and name in registered())


def _of_graphs(properties: OpenClipProperties | HfProperties) -> Origin:
    towers: tuple[Tower, ...] = ("text",) if isinstance(properties, HfProperties) else ("text", "image")
    return _of_sources([source for tower in towers for source in properties.triton_encoder(tower).sources])


def _of_sources(sources: Sequence[str]) -> Origin:
    """The first source that is a URL, else the first in S3, else a path."""
    files = "\n".join(sources)
    for source in sources:
        if "://" in source and not source.startswith("s3://"):
            return _origin("url", _domain(RemoteFile.parse(source).target.origin[1]), files)
    for source in sources:
        if source.startswith("s3://"):
            return _origin("s3", source.removeprefix("s3://").partition("/")[0], files)
    return _origin("path", "", str(PurePosixPath(files)))


def _domain(host: str) -> str:
    """The last two labels of a host's name, since the owner of a domain can add any number of hosts to it."""
    return host if is_literal(host) else ".".join(host.rstrip(".").split(".")[-2:])


def _origin(kind: str, site: str, file: str) -> Origin:
    # Hashed, since names in the properties may be long, and a URL may contain a password.
    return Origin(kind, site and _digest(site), _digest(file))  # type: ignore[arg-type]


def _digest(text: str) -> str:
    return blake3(text.encode()).hexdigest(16)
