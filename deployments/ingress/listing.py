"""The entries of `GET /models`, from what the encoders have loaded."""

import json
from collections.abc import Iterable
from typing import Any

from deployments.encoder.loaded import Loaded, shown_names
from embedding.models.spec import ModelInfo
from embedding.shown import without_credentials

Entry = dict[str, Any]


def listed(encoders: Iterable[Loaded], detailed: bool | None, replicas: bool) -> list[Entry]:
    """One entry for each model, however many replicas hold it.

    Args:
        encoders: what each has loaded.
        detailed: None for entries with the members of both generations of Marqo, each of which ignores those of the
            other; else the members of the newer one, with or without properties.
        replicas: whether each entry also names the replicas that hold the model, their nodes, and the bytes of its
            weights there. Not part of Marqo's protocol.
    """
    entries: dict[tuple[str, str], Entry] = {}
    for encoder in encoders:
        for info in encoder.models:
            entry = entries.setdefault((info.key, info.device), _entry(info, detailed))
            if replicas:
                holder = {"replica": encoder.replica, "node": encoder.node, "bytes": info.nbytes}
                entry.setdefault("replicas", []).append(holder)
    return list(entries.values())


def _entry(info: ModelInfo, detailed: bool | None) -> Entry:
    name, key = shown_names(info)
    if detailed is None:
        return {"model_name": name, "model_device": info.device, "modelName": key}
    entry = {"modelName": key}
    if detailed:
        properties = _without_secrets(json.loads(info.properties_json))
        entry["modelProperties"] = json.dumps(properties, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return entry


def _without_secrets(value: Any) -> Any:
    """Model properties with passwords and queries removed from URLs: a presigned URL has its credentials there."""
    if isinstance(value, dict):
        return {without_credentials(key): _without_secrets(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_secrets(one) for one in value]
    return without_credentials(value) if isinstance(value, str) else value
