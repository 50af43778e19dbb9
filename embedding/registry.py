"""Marqo's table of model names with their properties, and the keys that identify a model.

Marqo's API resolves names itself and sends complete properties. So the table is used only to preload models by name,
and to answer requests without ``modelProperties``. Source: docs/protocol.md, sections 7.6 (table) and 8.1 (keys). It
can be imported without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from importlib.resources import files

from blake3 import blake3

from embedding.errors import Fault, RequestError

RegistryEntry = dict[str, object]
"""The ``modelProperties`` of one model, as Marqo's protocol has them."""

DEMO_MODEL = "demo/clip"
"""Registry name and `name` property of the small CLIP model that is part of this package; Marqo does not know it."""
MAX_DEPTH = 100
"""Maximum nesting of maps and lists in a model's properties; those of Marqo's models have five levels."""


def lookup(model_name: str) -> RegistryEntry | None:
    """The complete ``modelProperties`` of a name, as a copy that the caller may change; None for an unknown name."""
    if model_name == DEMO_MODEL:
        return _demo_entry()
    properties = _table().get(model_name)
    return deepcopy(properties)


def names() -> list[str]:
    """All names for which ``lookup`` has properties, sorted."""
    return sorted([*_table(), DEMO_MODEL])


def model_key(model_name: str, properties: Mapping[str, object]) -> str:
    """The name under which Marqo's clients see a loaded model: ``name||hhhh``, with four hex digits of the digest.

    Four hex digits collide too easily to identify a model; use ``properties_digest`` for that.

    Raises:
        RequestError: the properties cannot be written as JSON.
    """
    return f"{model_name}||{properties_digest(properties)[:4]}"


def properties_digest(properties: Mapping[str, object]) -> str:
    """A key for caches of models: 32 hex digits (BLAKE3). Equal properties give equal digests, in any order of keys.

    Raises:
        RequestError: the properties cannot be written as JSON.
    """
    return blake3(canonical_json(properties).encode()).hexdigest()[:32]


def canonical_json(properties: Mapping[str, object]) -> str:
    """Properties as JSON with sorted keys, without spaces, and with only the escapes that JSON requires.

    Raises:
        RequestError: REFUSED; they hold values that MessagePack can express but JSON cannot (bytes, NaN, …), or are
            nested more than `MAX_DEPTH` deep, so that a process with a deeper stack might not be able to parse them.
    """
    if _depth(properties, MAX_DEPTH) > MAX_DEPTH:
        raise RequestError(Fault.REFUSED, f"Invalid model properties: they are nested more than {MAX_DEPTH} deep")
    try:
        text = json.dumps(dict(properties), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"Invalid model properties: they cannot be written as JSON: {error}"
        raise RequestError(Fault.REFUSED, message) from None
    return text


def _depth(value: object, limit: int) -> int:
    """The number of nested levels of maps and lists; counting stops at `limit` + 1."""
    level: list[object] = [value]
    depth = 0
    while level and depth <= limit:
        containers = [item for item in level if isinstance(item, dict | list | tuple)]
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        depth += bool(containers)
    return depth


def _demo_entry() -> RegistryEntry:
    config = json.loads((files("embedding.assets") / "demo-clip.json").read_text(encoding="utf-8"))
    return _entry(DEMO_MODEL, config["embed_dim"], "open_clip")


# --- Marqo's table, one tuple for each kind of model: dimensions first, then the models that have them ---

_LAION400M = "laion400m_e31 laion400m_e32"
_VIT_B_32 = f"openai {_LAION400M} laion2b_e16 laion2b_s34b_b79k"
_VIT_B_16 = f"openai {_LAION400M} laion2b_s34b_b88k"

_OPEN_CLIP: tuple[tuple[int, str, str], ...] = (
    # (dimensions, architectures, pretrained tags); each architecture has every tag of its row
    (1024, "RN50 RN50-quickgelu", "openai yfcc15m cc12m"),
    (512, "RN101 RN101-quickgelu", "openai yfcc15m"),
    (640, "RN50x4", "openai"),
    (768, "RN50x16", "openai"),
    (1024, "RN50x64", "openai"),
    (512, "ViT-B-32", _VIT_B_32),
    (512, "ViT-B-32-quickgelu", f"openai {_LAION400M}"),
    (512, "ViT-B-32-256", "datacomp_s34b_b86k"),
    (512, "ViT-B-16", _VIT_B_16),
    (512, "ViT-B-16-quickgelu", "metaclip_fullcc"),
    (640, "ViT-B-16-plus-240", _LAION400M),
    (768, "ViT-L-14", f"openai {_LAION400M} laion2b_s32b_b82k"),
    (768, "ViT-L-14-336", "openai"),
    (768, "ViT-L-14-quickgelu", "dfn2b"),
    (768, "ViT-L-14-CLIPA-336", "datacomp1b"),
    (1024, "ViT-H-14", "laion2b_s32b_b79k"),
    (1024, "ViT-H-14-quickgelu ViT-H-14-378-quickgelu", "dfn5b"),
    (1024, "ViT-g-14", "laion2b_s12b_b42k laion2b_s34b_b88k"),
    (1280, "ViT-bigG-14", "laion2b_s39b_b160k"),
    (512, "roberta-ViT-B-32", "laion2b_s12b_b32k"),
    (512, "xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
    (1024, "xlm-roberta-large-ViT-H-14", "frozen_laion5b_s13b_b90k"),
    (512, "convnext_base", "laion400m_s13b_b51k"),
    (640, "convnext_base_w", "laion2b_s13b_b82k laion2b_s13b_b82k_augreg laion_aesthetic_s13b_b82k"),
    (640, "convnext_base_w_320", "laion_aesthetic_s13b_b82k laion_aesthetic_s13b_b82k_augreg"),
    (768, "convnext_large_d", "laion2b_s26b_b102k_augreg"),
    (768, "convnext_large_d_320", "laion2b_s29b_b131k_ft laion2b_s29b_b131k_ft_soup"),
    (
        1024,
        "convnext_xxlarge",
        "laion2b_s34b_b82k_augreg laion2b_s34b_b82k_augreg_rewind laion2b_s34b_b82k_augreg_soup",
    ),
    (512, "coca_ViT-B-32", "laion2b_s13b_b90k mscoco_finetuned_laion2b_s13b_b90k"),
    (768, "coca_ViT-L-14", "laion2b_s13b_b90k mscoco_finetuned_laion2b_s13b_b90k"),
    (768, "ViT-B-16-SigLIP ViT-B-16-SigLIP-256 ViT-B-16-SigLIP-384 ViT-B-16-SigLIP-512", "webli"),
    (1024, "ViT-L-16-SigLIP-256 ViT-L-16-SigLIP-384", "webli"),
    (1152, "ViT-SO400M-14-SigLIP-384", "webli"),
    (512, "EVA02-B-16", "merged2b_s8b_b131k"),
    (768, "EVA02-L-14", "merged2b_s4b_b131k"),
    (768, "EVA02-L-14-336", "merged2b_s6b_b61k"),
)

_HUB: tuple[tuple[int, str], ...] = (
    # (dimensions, registry names); an open_clip model from the Hugging Face repository of the same name
    (512, "Marqo/marqo-fashionCLIP"),
    (768, "Marqo/marqo-fashionSigLIP Marqo/marqo-ecommerce-embeddings-B"),
    (1024, "Marqo/marqo-ecommerce-embeddings-L"),
    (768, "visheratin/nllb-clip-base-siglip visheratin/nllb-siglip-mrl-base"),
    (1152, "visheratin/nllb-clip-large-siglip visheratin/nllb-siglip-mrl-large"),
    (768, "timm/ViT-B-16-SigLIP2 timm/ViT-B-16-SigLIP2-256 timm/ViT-B-16-SigLIP2-512"),
    (1024, "timm/ViT-L-16-SigLIP2-256"),
)

_OPEN_CLIP_ALIASES: tuple[tuple[int, str, str], ...] = (
    # (dimensions, registry name, name property)
    *((512, f"Marqo/ViT-B-32.{tag}", f"open_clip/ViT-B-32/{tag}") for tag in _VIT_B_32.split()),
    *((512, f"Marqo/ViT-B-16.{tag}", f"open_clip/ViT-B-16/{tag}") for tag in _VIT_B_16.split()),
    *(
        (768, f"Marqo/ViT-L-14.{tag}", f"hf-hub:timm/vit_large_patch14_clip_224.{tag}")
        for tag in f"openai {_LAION400M}".split()
    ),
    (768, "Marqo/ViT-L-14.laion2b_s32b_b82k", "hf-hub:laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    (
        512,
        "Marqo/roberta-ViT-B-32.laion2b_s12b_b32k",
        "hf-hub:laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k",
    ),
    (
        512,
        "Marqo/xlm-roberta-base-ViT-B-32.laion5b_s13b_b90k",
        "hf-hub:laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
    ),
    (
        1024,
        "Marqo/xlm-roberta-large-ViT-H-14.frozen_laion5b_s13b_b90k",
        "hf-hub:laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k",
    ),
    (
        512,
        "laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
        "open_clip/xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k",
    ),
)

_HF: tuple[tuple[int, int, str, str], ...] = (
    # (dimensions, tokens, owner of the repository, repositories); the registry name is hf/<repository>
    (384, 128, "sentence-transformers", "all-MiniLM-L6-v1"),
    (384, 256, "sentence-transformers", "all-MiniLM-L6-v2"),
    (768, 128, "sentence-transformers", "all-mpnet-base-v1 all-mpnet-base-v2"),
    (384, 128, "flax-sentence-embeddings", "all_datasets_v3_MiniLM-L12 all_datasets_v3_MiniLM-L6"),
    (384, 128, "flax-sentence-embeddings", "all_datasets_v4_MiniLM-L12 all_datasets_v4_MiniLM-L6"),
    (768, 128, "flax-sentence-embeddings", "all_datasets_v3_mpnet-base all_datasets_v4_mpnet-base"),
    (384, 192, "intfloat", "e5-small"),
    (768, 192, "intfloat", "e5-base"),
    (1024, 192, "intfloat", "e5-large"),
    (384, 128, "intfloat", "e5-small-unsupervised"),
    (768, 128, "intfloat", "e5-base-unsupervised"),
    (1024, 128, "intfloat", "e5-large-unsupervised"),
    (384, 512, "intfloat", "e5-small-v2 multilingual-e5-small"),
    (768, 512, "intfloat", "e5-base-v2 multilingual-e5-base"),
    (1024, 512, "intfloat", "e5-large-v2 multilingual-e5-large multilingual-e5-large-instruct"),
    (384, 512, "BAAI", "bge-small-en-v1.5"),
    (512, 512, "BAAI", "bge-small-zh-v1.5"),
    (768, 512, "BAAI", "bge-base-en-v1.5 bge-base-zh-v1.5"),
    (1024, 512, "BAAI", "bge-large-en-v1.5 bge-large-zh-v1.5"),
    (768, 512, "Snowflake", "snowflake-arctic-embed-m snowflake-arctic-embed-m-v1.5"),
    (1024, 512, "Snowflake", "snowflake-arctic-embed-l"),
    (1024, 512, "avsolatorio", "GIST-large-Embedding-v0"),
    (1024, 512, "llmrails", "ember-v1"),
)

_MULTILINGUAL_CLIP: tuple[tuple[int, str], ...] = (
    (768, "XLM-Roberta-Large-Vit-L-14"),
    (640, "XLM-R Large Vit-B/16+"),
    (640, "XLM-Roberta-Large-Vit-B-16Plus"),
    (512, "XLM-Roberta-Large-Vit-B-32"),
    (768, "LABSE-Vit-L-14"),
)

_LANGUAGEBIND: tuple[tuple[str, str], ...] = (
    # (repository, modalities); docs/protocol.md lists those of the first two, the others follow from the names
    ("Video_V1.5_FT_Audio_FT_Image", "video audio text image"),
    ("Video_V1.5_FT_Audio_FT", "video audio text"),
    ("Video_V1.5_FT_Image", "video text image"),
    ("Audio_FT_Image", "audio text image"),
    ("Audio_FT", "audio text"),
    ("Video_V1.5_FT", "video text"),
)

_RANDOM: tuple[tuple[int, str], ...] = (
    (384, "random"),
    (32, "random/small"),
    (128, "random/medium"),
    (768, "random/large"),
)


@cache
def _table() -> dict[str, RegistryEntry]:
    """Properties by registry name. Where Marqo's two generations differ, those of the native server."""
    return dict(_entries())


def _entries() -> Iterator[tuple[str, RegistryEntry]]:
    yield from _open_clip_entries()
    yield from _text_entries()
    yield from _other_entries()


def _open_clip_entries() -> Iterator[tuple[str, RegistryEntry]]:
    for dimensions, architectures, tags in _OPEN_CLIP:
        for architecture in architectures.split():
            for tag in tags.split():
                name = f"open_clip/{architecture}/{tag}"
                yield name, _entry(name, dimensions, "open_clip", pretrained=tag)
    for dimensions, repositories in _HUB:
        for name in repositories.split():
            yield name, _entry(f"hf-hub:{name}", dimensions, "open_clip")
    for dimensions, name, target in _OPEN_CLIP_ALIASES:
        yield name, _entry(target, dimensions, "open_clip")


def _text_entries() -> Iterator[tuple[str, RegistryEntry]]:
    for dimensions, tokens, owner, repositories in _HF:
        for repository in repositories.split():
            yield (
                f"hf/{repository}",
                _entry(f"{owner}/{repository}", dimensions, "hf", tokens=tokens),
            )
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L12-v2"):
        yield name, _entry(name, 384, "hf", tokens=256)
    stella = "Marqo/dunzhang-stella_en_400M_v5"
    yield stella, _entry(stella, 1024, "hf_stella", tokens=512, trustRemoteCode=True)


def _other_entries() -> Iterator[tuple[str, RegistryEntry]]:
    for dimensions, repository in _MULTILINGUAL_CLIP:
        name = f"multilingual-clip/{repository}"
        yield name, _entry(name, dimensions, "multilingual_clip")
    for repository, modalities in _LANGUAGEBIND:
        name = f"LanguageBind/{repository}"
        yield name, _entry(name, 768, "languagebind", supported_modalities=modalities.split())
    for dimensions, name in _RANDOM:
        yield name, _entry(name, dimensions, "random", tokens=128, notes="")
    # It has no dimensions: an index that uses it states the dimensions of its vectors.
    yield "no_model", {"name": "no_model", "type": "no_model"}


def _entry(name: str, dimensions: int, kind: str, **more: object) -> RegistryEntry:
    return {"name": name, "dimensions": dimensions, "type": kind, **more}
