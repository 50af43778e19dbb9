from __future__ import annotations

import json
from importlib.resources import files

import pytest

from embedding.errors import Fault, RequestError
from embedding.registry import DEMO_MODEL, canonical_json, lookup, model_key, names, properties_digest

PROTOCOL_KEYS = [
    ({"name": "test", "dimensions": 512, "type": "clip", "tokens": 77}, "c8e6"),
    ({"name": "bert", "dimensions": 768, "type": "hf"}, "c663"),
    ({}, "6e46"),
    ({"name": "test", "dimensions": 512, "type": "open_clip"}, "f2c6"),
]


@pytest.mark.parametrize(("properties", "digits"), PROTOCOL_KEYS)
def test_model_key_is_marqos(properties: dict[str, object], digits: str) -> None:
    assert model_key("my-model", properties) == f"my-model||{digits}"


def test_model_key_of_a_registry_entry_is_marqos() -> None:
    properties = lookup("random/small")
    assert properties == {
        "name": "random/small",
        "dimensions": 32,
        "tokens": 128,
        "type": "random",
        "notes": "",
    }
    assert model_key("random/small", properties) == "random/small||8c36"


def test_the_order_of_properties_does_not_matter_and_every_property_does() -> None:
    digest = properties_digest({"name": "a", "nested": {"x": 1, "y": [1, 2]}})
    assert len(digest) == 32
    assert digest == properties_digest({"nested": {"y": [1, 2], "x": 1}, "name": "a"})
    assert digest != properties_digest({"nested": {"y": [2, 1], "x": 1}, "name": "a"})


def test_canonical_json_is_compact_sorted_and_unescaped() -> None:
    assert canonical_json({"b": "é你", "a": [1, None, True]}) == '{"a":[1,null,true],"b":"é你"}'


@pytest.mark.parametrize("value", [b"bytes", {1: "a", "b": 2}, "\ud800", float("nan"), object()])
def test_properties_that_are_not_json_are_refused(value: object) -> None:
    with pytest.raises(RequestError, match="Invalid model properties") as caught:
        properties_digest({"name": value})
    assert caught.value.fault is Fault.REFUSED


def test_endlessly_nested_properties_are_refused() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RequestError):
        properties_digest({"name": nested})


def test_marqos_71_open_clip_names() -> None:
    open_clip = [name for name in names() if name.startswith("open_clip/")]
    assert len(open_clip) == 71
    for name in open_clip:
        properties = lookup(name)
        assert properties is not None
        assert properties["name"] == name
        assert properties["pretrained"] == name.split("/")[2]


def test_the_open_clip_names_are_open_clips_own() -> None:
    open_clip = pytest.importorskip("open_clip")
    known = {f"open_clip/{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()}
    assert [name for name in names() if name.startswith("open_clip/") and name not in known] == []


def test_the_dimensions_are_those_of_open_clips_architectures() -> None:
    open_clip = pytest.importorskip("open_clip")
    for name in names():
        properties = lookup(name)
        assert properties is not None
        if str(properties["name"]).startswith("open_clip/"):
            architecture = str(properties["name"]).split("/")[1]
            config = open_clip.get_model_config(architecture)
            assert config is not None, architecture
            assert properties["dimensions"] == config["embed_dim"], name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("open_clip/ViT-B-32/laion2b_s34b_b79k", {"dimensions": 512, "type": "open_clip"}),
        ("open_clip/ViT-SO400M-14-SigLIP-384/webli", {"dimensions": 1152}),
        ("Marqo/marqo-fashionSigLIP", {"name": "hf-hub:Marqo/marqo-fashionSigLIP", "dimensions": 768}),
        ("Marqo/marqo-ecommerce-embeddings-L", {"dimensions": 1024}),
        ("Marqo/ViT-B-16.openai", {"name": "open_clip/ViT-B-16/openai", "dimensions": 512}),
        ("hf/e5-base", {"name": "intfloat/e5-base", "dimensions": 768, "tokens": 192, "type": "hf"}),
        ("hf/bge-small-zh-v1.5", {"name": "BAAI/bge-small-zh-v1.5", "dimensions": 512}),
        ("multilingual-clip/XLM-R Large Vit-B/16+", {"dimensions": 640, "type": "multilingual_clip"}),
        ("random", {"dimensions": 384, "type": "random"}),
        ("no_model", {"type": "no_model"}),
    ],
)
def test_lookup_knows(name: str, expected: dict[str, object]) -> None:
    properties = lookup(name)
    assert properties is not None
    assert properties.items() >= expected.items()


def test_lookup_answers_every_name_and_no_other() -> None:
    assert names() == sorted(set(names()))
    for name in names():
        properties = lookup(name)
        assert properties is not None
        assert properties_digest(properties)
    assert lookup("no/such/model") is None


def test_what_lookup_gives_is_the_callers_own() -> None:
    name = "LanguageBind/Audio_FT"
    properties = lookup(name)
    assert properties is not None
    properties["supported_modalities"].append("smell")  # type: ignore[attr-defined]
    assert lookup(name) != properties


def test_the_demo_model_is_described_by_its_own_config() -> None:
    properties = lookup(DEMO_MODEL)
    config = json.loads((files("embedding.assets") / "demo-clip.json").read_text())
    assert properties == {"name": "demo/clip", "type": "open_clip", "dimensions": config["embed_dim"]}


@pytest.mark.parametrize("kind", ["map", "list"])
def test_properties_nested_too_deeply_are_refused(kind: str) -> None:
    """Written near the limit of Python's stack, they could not be read again by a process deeper in its own."""
    value: object = 1
    for _ in range(98):
        value = {"a": value} if kind == "map" else [value]
    canonical_json({"within": [value]})
    with pytest.raises(RequestError, match="nested more than 100 deep"):
        canonical_json({"beyond": [[value]]})
