"""Where the files of a model come from, told by its properties alone."""

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
    """Whether there is anything to download or read. Of what is not served at all, that is not known: True."""
    return spec.properties.get("type") != "random"


def origin_of(spec: ModelSpec, options: LoadOptions) -> Origin:
    """The source on which the model's download depends most: the least trusted of those that it has.

    Raises:
        RequestError: REFUSED; the properties are not valid, or of a model that needs no files.
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
    # Pretrained tags are those that open_clip knows: nobody's own server is behind one.
    return name.startswith(_TAG_PREFIX) or ("registry" in options.model_sources and name in registered())


def _of_graphs(properties: OpenClipProperties | HfProperties) -> Origin:
    towers: tuple[Tower, ...] = ("text",) if isinstance(properties, HfProperties) else ("text", "image")
    return _of_sources([source for tower in towers for source in properties.triton_encoder(tower).sources])


def _of_sources(sources: Sequence[str]) -> Origin:
    """Of several sources: of the first with a host that the request names."""
    files = "\n".join(sources)
    for source in sources:
        if "://" in source and not source.startswith("s3://"):
            return _origin("url", _domain(RemoteFile.parse(source).target.origin[1]), files)
    for source in sources:
        if source.startswith("s3://"):
            return _origin("s3", source.removeprefix("s3://").partition("/")[0], files)
    return _origin("path", "", str(PurePosixPath(files)))


def _domain(host: str) -> str:
    """The last two labels: whoever owns a domain can make up as many hosts in it as they like."""
    return host if is_literal(host) else ".".join(host.rstrip(".").split(".")[-2:])


def _origin(kind: str, site: str, file: str) -> Origin:
    # Hashed: properties may hold names of any length, and a URL may hold a password.
    return Origin(kind, site and _digest(site), _digest(file))  # type: ignore[arg-type]


def _digest(text: str) -> str:
    return blake3(text.encode()).hexdigest(16)
