"""What repositories say of their models, judged by reading alone."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest

from embedding.errors import Fault, RequestError
from embedding.models.hf.config_checks import (
    MODEL_TYPES,
    TOKENIZER_CLASSES,
    check_config_files,
    check_sizes,
    checked_config,
    checked_index,
    checked_special_tokens,
    checked_tokenizer_config,
)
from embedding.models.hf.staging import resolved_file, staged_model, staged_tokenizer
from embedding.models.openclip.config_checks import check_openclip_sizes, checked_openclip
from tests.support.hostile_repositories import CONFIGS, DROPPED, FILE_KEYS, JSON, OPENCLIP, changed, reads_a_file, write
from tests.support.openclip import architecture
from tests.support.tiny_bert import files_of, save_bert

BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": 30_522,
    "intermediate_size": 1536, "max_position_embeddings": 512, "position_embedding_type": "absolute",
}  # fmt: skip


@pytest.fixture(scope="module")
def bert_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_of(save_bert(tmp_path_factory.mktemp("bert") / "plain", pooling="cls"))


def config_refusal(files: dict[str, bytes]) -> str:
    with pytest.raises(RequestError) as caught:
        check_config_files(files)
    assert caught.value.fault is Fault.REFUSED
    return caught.value.message


def test_a_good_repository(bert_files: dict[str, bytes]) -> None:
    check_config_files(bert_files)


# As the repositories of the registry's models have them.
REGISTRY = [
    *("bert", "mpnet", "xlm-roberta", "roberta"),  # hf: e5, bge, MiniLM, mpnet, arctic, GIST, ember, multilingual-e5
    *("mt5", "m2m_100"),  # towers of open_clip: mt5, nllb
]
TOKENIZERS = ["BertTokenizer", "MPNetTokenizer", "XLMRobertaTokenizerFast", "RobertaTokenizer", "T5Tokenizer",
              "NllbTokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast", "CLIPTokenizer"]  # fmt: skip


@pytest.mark.parametrize("kind", REGISTRY)
def test_types_of_the_registrys_models(kind: str) -> None:
    assert checked_config(BERT | {"model_type": kind})["model_type"] == kind


def test_towers_of_open_clip_are_among_the_types() -> None:
    from open_clip.hf_configs import arch_dict

    assert arch_dict.keys() <= MODEL_TYPES


def test_types_and_classes_are_those_of_transformers() -> None:
    """A misspelt name would be a model that cannot be had."""
    # The name is imported there, and then extended.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    assert CONFIG_MAPPING_NAMES.keys() >= MODEL_TYPES
    unknown = [name for name in TOKENIZER_CLASSES if tokenizer_class_from_name(f"{name}Tokenizer") is None]
    assert unknown == ["MT5"]  # an older version's, for which transformers takes tokenizer.json


@pytest.mark.parametrize("name", TOKENIZERS)
def test_classes_of_the_registrys_tokenizers(name: str) -> None:
    assert checked_tokenizer_config({"tokenizer_class": name}) == {"tokenizer_class": name}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(bert_files: dict[str, bytes], case: str) -> None:
    weights = bert_files["model.safetensors"]

    def judge() -> None:
        # What is possible as such does not fit to the weights that are there.
        check_sizes(checked_config(BERT | CONFIGS[case]), len(weights), weights.count(b"data_offsets"))

    with pytest.raises(RequestError) as caught:
        judge()
    assert caught.value.fault is Fault.REFUSED
    assert "config.json" in caught.value.message


def test_members_that_change_nothing() -> None:
    assert checked_config(BERT | DROPPED) == checked_config(BERT)


@pytest.mark.parametrize("case", JSON)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "open_clip_config.json"])
def test_no_json(case: str, name: str) -> None:
    start = time.process_time()
    assert name in config_refusal({name: JSON[case]})
    assert time.process_time() - start < 0.25


@pytest.mark.parametrize("case", OPENCLIP)
def test_open_clip_configs_that_are_refused(case: str) -> None:
    model = copy.deepcopy(architecture())
    for part, members in OPENCLIP[case].items():
        model[part] |= members
    assert "open_clip_config.json cannot be used" in config_refusal(
        {"open_clip_config.json": json.dumps({"model_cfg": model}).encode()}
    )


def test_every_architecture_of_open_clip_may_be_in_a_repository() -> None:
    for name in open_clip.list_models():
        checked_openclip({"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}})


def test_an_architecture_larger_than_its_checkpoint() -> None:
    model = architecture()
    check_openclip_sizes(model, 10**8)
    model["vision_cfg"] |= {"width": 4096, "layers": 200}
    with pytest.raises(RequestError, match="describes at least"):
        check_openclip_sizes(model, 10**8)


def test_no_weights_are_fetched_beside_the_checkpoint() -> None:
    model = architecture() | {"custom_text": True}
    model["vision_cfg"] = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": True}
    model["text_cfg"] |= {"hf_model_name": "roberta-base", "hf_model_pretrained": True}
    checked = checked_openclip({"model_cfg": model})["model_cfg"]
    assert checked["vision_cfg"]["timm_model_pretrained"] is False
    assert checked["text_cfg"]["hf_model_pretrained"] is False


# --- Files that are named or linked ---


@pytest.mark.parametrize("place", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", FILE_KEYS)
def test_no_name_of_a_file_reaches_transformers(
    tmp_path: Path, bert_files: dict[str, bytes], key: str, place: str
) -> None:
    folder = write(reads_a_file(bert_files, Path("/etc/passwd"), key, place), tmp_path / "repository")
    with staged_tokenizer(folder) as staged:
        assert all(b"passwd" not in path.read_bytes() for path in staged.iterdir())


def test_settings_that_are_no_tokens() -> None:
    for bad in ({"content": "x", "vocab": "/etc"}, ["x"] * 3 + [5], "x" * 10_000):
        with pytest.raises(RequestError):
            checked_special_tokens({"additional_special_tokens": bad})
    with pytest.raises(RequestError):
        checked_tokenizer_config({"added_tokens_decoder": {"999999999": {"content": "x"}}})


def test_an_index_names_the_repositorys_weights_alone() -> None:
    present = frozenset({"model-1.safetensors"})
    good = {"metadata": {"total_size": 5}, "weight_map": {"a": "model-1.safetensors"}}
    assert checked_index(good, present, "x") == good
    for bad in ("../model-1.safetensors", "/etc/passwd", "other.safetensors", 5):
        with pytest.raises(RequestError, match="not one of the repository's weights"):
            checked_index({"weight_map": {"a": bad}}, present, "x")


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "config.json", "tokenizer_config.json", "x.model"])
@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "nowhere", "."])
def test_links_that_lead_out(tmp_path: Path, bert_files: dict[str, bytes], name: str, target: str) -> None:
    folder = write(bert_files, tmp_path / "repository")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)
    with pytest.raises(RequestError, match=name), staged_tokenizer(folder):
        pass


def test_weights_that_are_a_link(tmp_path: Path, bert_files: dict[str, bytes]) -> None:
    folder = write(bert_files, tmp_path / "repository")
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="leads out"), staged_model(folder, BERT, [weights]):
        pass
    with staged_model(folder, BERT, [weights], [tmp_path]) as staged:
        assert (staged / "model.safetensors").read_bytes() == bert_files["model.safetensors"]


def test_links_of_the_hubs_client(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs = tmp_path / "models--a--b" / "blobs"
    for place in (folder, blobs):
        place.mkdir(parents=True)
    (blobs / "abcd").write_text("x")
    (folder / "vocab.txt").symlink_to("../../blobs/abcd")
    assert resolved_file(folder / "vocab.txt", folder) == blobs / "abcd"


def test_a_thousand_descriptions_take_no_time(bert_files: dict[str, bytes]) -> None:
    """A fuzzer asks a hundred thousand times."""
    files = changed(bert_files, "config.json", num_hidden_layers=3000)
    start = time.process_time()
    for _ in range(1000):
        config_refusal(files)
    assert time.process_time() - start < 10
