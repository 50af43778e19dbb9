"""Models over HTTP, through the whole graph: docs/protocol.md, sections 7.5 and 8.1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.lib.image_host import ImageHost
from embedding.registry import lookup, model_key
from tests.support.ingress import PREAMBLE, SMALL, drawn, listed, raw, request, vectors
from tests.support.marqo_client import MarqoClient

# --- Models ---

DEMO = {"name": "demo/clip", "type": "open_clip", "dimensions": 128}
"""As Marqo sends it: it always sends properties, and an index's settings name them."""

CANNOT: list[tuple[str, str, dict[str, Any] | None, str]] = [
    # (what, model name, properties, the detail contains)
    ("unknown name", "nobody/knows", None, "not in the registry"),
    ("not loadable", "mine", {"name": "ViT-B-32", "dimensions": 512, "localpath": "/nowhere.pt"}, "localpath"),
    ("unknown architecture", "mine", {"name": "ViT-Z-99", "dimensions": 512}, "ViT-Z-99"),
    ("unknown tag", "mine", {"name": "open_clip/ViT-B-32/unheard", "dimensions": 512}, "Invalid model properties"),
    ("no name", "mine", {"dimensions": 512, "type": "open_clip"}, "name"),
    ("no dimensions", "mine", {"type": "random"}, "dimensions"),
    ("empty", "mine", {}, "Invalid model properties"),
    ("no_model", "no_model", {"type": "no_model", "dimensions": 5}, "Unsupported model type"),
    ("no_model by name", "no_model", None, "Unsupported model type"),
    ("unsupported", "mine", {"type": "sbert", "name": "x", "dimensions": 5}, "Unsupported model type"),
    ("unsupported by name", "LanguageBind/Audio_FT", None, "Unsupported model type"),
    ("bad type", "mine", {"type": ["random"], "dimensions": 5}, "Unsupported model type"),
    ("too wide", "mine", {"type": "random", "dimensions": 10**9}, "dimensions"),
    ("no json", "mine", {"type": "random", "dimensions": 5, "notes": b"\xff"}, "Invalid model properties"),
    ("nan", "mine", {"type": "random", "dimensions": 5, "notes": float("nan")}, "Invalid model properties"),
    ("demo with other dimensions", "mine", {**DEMO, "dimensions": 77}, "dimensions"),
]


@pytest.mark.parametrize(("model", "properties", "reason"), [row[1:] for row in CANNOT], ids=[row[0] for row in CANNOT])
@pytest.mark.parametrize("individual", [True, False])
def test_a_model_that_cannot_be_had_is_400_with_the_reason(
    marqo: MarqoClient, model: str, properties: Mapping[str, Any] | None, reason: str, individual: bool
) -> None:
    status, body = marqo.vectorise(["a"], model=model, properties=properties, returnIndividualError=individual)
    assert status == 400
    assert body["detail"].startswith(PREAMBLE)
    assert reason in body["detail"]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "gpu", "", "CPU", "mps"])
def test_a_bad_device_is_400_and_lists_the_good_ones(marqo: MarqoClient, device: str) -> None:
    status, body = marqo.vectorise(["a"], properties=SMALL, device=device)
    assert status == 400
    assert body["detail"].startswith(PREAMBLE)
    assert "valid devices: cpu" in body["detail"]


def test_the_cpu_is_a_device(marqo: MarqoClient) -> None:
    np.testing.assert_array_equal(vectors(marqo.results(["a"], properties=SMALL, device="cpu")), drawn(["a"]))


def test_members_of_the_newer_generation_are_ignored(marqo: MarqoClient) -> None:
    properties = {**(lookup("demo/clip") or {}), "tritonModelName": "x", "notes": None, "text_query_prefix": "q: "}
    results = marqo.results(["a red circle"], model="mine", properties=properties)
    np.testing.assert_allclose(vectors(results), vectors(marqo.results(["a red circle"])), atol=1e-6)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"notes": "", "pretrained": None},
        {"mean": [0, 0, 0], "size": 100, "imagePreprocessor": "SigLIP", "jit": True},
    ],
)
def test_properties_name_the_demo_model(marqo: MarqoClient, image_host: ImageHost, members: dict[str, Any]) -> None:
    """Like a pretrained tag: its preprocessing is its own."""
    for model in ("my-index", "demo/clip"):
        for contents, modality in ((["a red circle"], "language"), ([image_host.url("/ok/1.jpg")], "image")):
            named = vectors(marqo.results(contents, modality, model, {**DEMO, **members}))
            np.testing.assert_allclose(named, vectors(marqo.results(contents, modality)), atol=1e-6)


def test_the_demos_properties_are_those_of_the_registry(marqo: MarqoClient) -> None:
    """So an encoder that has preloaded it does not load it again."""
    marqo.embed(["a red circle"])
    before = [line["modelName"] for line in listed(marqo)]
    marqo.embed(["a red circle"], model="demo/clip", properties=DEMO)
    assert [line["modelName"] for line in listed(marqo)].count(model_key("demo/clip", DEMO)) == 1
    assert len(listed(marqo)) == len(before)


def test_credentials_are_in_no_error(marqo: MarqoClient) -> None:
    auth = {"s3": {"aws_access_key_id": "hunter2", "aws_secret_access_key": "hunter2"}, "hf": {"token": "hunter2"}}
    for wrong in (auth, {"hf": {"token": ["hunter2"]}}, {"s3": {"aws_secret_access_key": "hunter2"}}):
        config = {"modelName": "a", "modelProperties": SMALL, "modelAuth": wrong}
        status, body = marqo.request(request(["a"], modelConfig=config))
        assert status == 422
        assert "modelAuth" in body["detail"]
        assert "hunter2" not in body["detail"]


# --- /models ---


TINY = {"name": "random/tiny", "dimensions": 3, "type": "random"}


def test_models_as_the_older_generation_has_them(marqo: MarqoClient) -> None:
    marqo.embed(["a"], model="tiny/one", properties=TINY)
    line = {"model_name": "tiny/one", "model_device": "cpu", "modelName": model_key("tiny/one", TINY)}
    assert line in listed(marqo)
    demo = {"model_name": "demo/clip", "model_device": "cpu", "modelName": model_key("demo/clip", DEMO)}
    assert demo in listed(marqo)
    path = "/models?model_name=tiny/one&model_device=cpu"
    assert raw(marqo, "DELETE", path) == (
        200,
        {"result": "success", "message": "successfully eject model_name `tiny/one` from device `cpu`"},
    )
    assert line not in listed(marqo)
    status, body = raw(marqo, "DELETE", path)
    assert status == 400
    assert "tiny/one" in body["detail"]
    assert demo in listed(marqo)


def test_models_as_the_newer_generation_has_them(marqo: MarqoClient) -> None:
    marqo.embed(["a"], model="tiny/two", properties=TINY)
    (line,) = [line for line in listed(marqo, "?detailed=false") if line["modelName"].startswith("tiny/two||")]
    assert line.keys() == {"modelName"}
    key = line["modelName"]
    assert len(key) == len("tiny/two||") + 4
    (line,) = [line for line in listed(marqo, "?detailed=true") if line["modelName"] == key]
    assert line.keys() == {"modelName", "modelProperties"}
    assert json.loads(line["modelProperties"]) == TINY
    gone = {"result": "success", "message": f"Model {key} ejected successfully."}
    assert raw(marqo, "DELETE", f"/models?model_name={key}") == (200, gone)
    assert key not in [line["modelName"] for line in listed(marqo, "?detailed=false")]
    # Here an unknown key is no error.
    assert raw(marqo, "DELETE", f"/models?model_name={key}") == (200, gone)


@pytest.mark.parametrize("query", ["", "?detailed=false", "?detailed=true", "?detailed=true&replicas=true"])
def test_models_are_listed_without_the_credentials_of_their_urls(marqo: MarqoClient, query: str) -> None:
    """In names and properties. The random model downloads nothing, but its properties are listed like any other's."""
    url = "https://me:hunter2@models.example/x.pt?X-Amz-Signature=hunter3"
    properties = {
        **SMALL,
        "name": url,
        "url": url,
        "tritonTextEncoderProperties": {"sources": [url]},
        "modelLocation": {"s3": {"Bucket": "b", "Key": "k.pt?X-Amz-Signature=hunter4"}},
        "notes": [{url: ["see s3://me:hunter5@bucket/key?token=hunter6 for it"]}],
    }
    marqo.embed(["a"], model=url, properties=properties)
    reply = marqo.get(f"/models{query}")
    assert "hunter" not in reply.text
    (line,) = [line for line in reply.json()["models"] if "models.example/x.pt" in str(line)]
    if "detailed=true" in query:
        assert line["modelProperties"].count("https://models.example/x.pt") == 4
        assert "s3://bucket/key" in line["modelProperties"]
    # By the name that is shown it can be ejected, too.
    key = line.get("modelName", line.get("model_name"))
    assert key.startswith("https://models.example/x.pt")
    assert httpx.delete(marqo.url + "/models", params={"model_name": key}).status_code == 200
    gone = marqo.get(f"/models{query}")
    assert gone.status_code == 200
    assert "models.example/x.pt" not in gone.text


def test_the_newer_generation_may_use_the_bare_name(marqo: MarqoClient) -> None:
    marqo.embed(["a"], model="tiny/three", properties=TINY)
    assert raw(marqo, "DELETE", "/models?model_name=tiny/three")[0] == 200
    assert not any(line["model_name"] == "tiny/three" for line in listed(marqo))


def test_the_key_of_a_registry_model(marqo: MarqoClient) -> None:
    marqo.embed(["a"], model="random/small")
    assert "random/small||8c36" in [line["modelName"] for line in listed(marqo, "?detailed=false")]


def test_an_ejected_model_is_loaded_again(marqo: MarqoClient) -> None:
    before = vectors(marqo.results(["a red circle"]))
    assert raw(marqo, "DELETE", "/models?model_name=demo/clip&model_device=cpu")[0] == 200
    np.testing.assert_allclose(vectors(marqo.results(["a red circle"])), before, atol=1e-6)


@pytest.mark.parametrize("query", ["", "?model_device=cpu", "?detailed=true"])
def test_an_eject_needs_a_name(marqo: MarqoClient, query: str) -> None:
    status, body = raw(marqo, "DELETE", "/models" + query)
    assert status == 422
    assert "model_name" in str(body["detail"])


def test_ejecting_nothing_in_particular_ejects_nothing(marqo: MarqoClient) -> None:
    marqo.embed(["a"], model="tiny/four", properties=TINY)
    for query in ("model_name=", "model_name=tiny", "model_name=tiny/four|", "model_name=&model_device="):
        raw(marqo, "DELETE", "/models?" + query)
    assert any(line["model_name"] == "tiny/four" for line in listed(marqo))
